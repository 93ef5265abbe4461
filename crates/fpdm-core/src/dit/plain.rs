//! The explicit baseline: DiT (Peebles and Xie 2023, arXiv 2212.09748).

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::block::Block;
use super::condition::{Conditioner, Inputs};
use super::config::{Architecture, Config};
use super::embed::Embedder;
use super::final_layer::FinalLayer;
use super::parameters::Weights;
use crate::{Error, Result};

/// A stack of [`Config::depth`] blocks.
#[derive(Clone, Debug)]
pub struct Dit {
    config: Config,
    embedder: Embedder,
    /// One for all, or one a block.
    conditioners: Vec<Conditioner>,
    blocks: Vec<Block>,
    final_layer: FinalLayer,
}

impl Dit {
    /// Reads the parameters of [`Config::parameters`] from `vb`.
    ///
    /// # Errors
    /// A bad config; or [`Error::Weights`] that names every tensor that is missing or has another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if config.architecture != Architecture::Dit {
            return Err(Error::config("architecture", "\"fpdm\" has an implicit part; build it with `Fpdit::new`"));
        }
        let weights = Weights::read(config, &vb)?;
        Ok(Self {
            config: config.clone(),
            embedder: Embedder::read(&weights, config)?,
            conditioners: match config.block_embedders {
                false => vec![Conditioner::read(&weights, config, "")?],
                true => (0..config.depth)
                    .map(|i| Conditioner::read(&weights, config, &format!("blocks.{i}.")))
                    .collect::<Result<_>>()?,
            },
            blocks: (0..config.depth).map(|i| Block::read(&weights, &format!("blocks.{i}"), config)).collect(),
            final_layer: FinalLayer::read(&weights),
        })
    }

    /// The settings it was built with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The network's answer `(B, C, H, W)`, or `(B, 2 C, H, W)` with a learned variance, for noisy latents `x`
    /// `(B, C, H, W)`, times `t` `(B)` and labels `y`, `(B)` or `(B, L)`.
    pub fn forward(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Tensor> {
        self.answer(&self.checked(x, t, y)?)
    }

    /// What the device reads of the arguments of [`Dit::forward`], after the checks on the host: `x`, `t`, and `y` where
    /// the network has labels.
    ///
    /// # Errors
    /// Those of [`Dit::forward`] about its arguments.
    pub fn inputs(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Vec<Tensor>> {
        Ok(self.checked(x, t, y)?.into_vec())
    }

    /// [`Dit::forward`] of checked [`Dit::inputs`]: on the device alone.
    pub fn forward_inputs(&self, inputs: &[Tensor]) -> Result<Tensor> {
        self.answer(&Inputs::from_slice(inputs)?)
    }

    fn checked(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Inputs> {
        let (batch, first) = (self.embedder.check(x)?, &self.conditioners[0]);
        Ok(Inputs { x: x.clone(), t: first.times(t, batch)?, y: first.labels(y, batch)? })
    }

    fn answer(&self, Inputs { x, t, y }: &Inputs) -> Result<Tensor> {
        let mut z = self.embedder.latents(x)?;
        let conditions: Vec<Tensor> = self
            .conditioners
            .iter()
            .map(|conditioner| Ok(fpdm_kernels::silu(&conditioner.both(t, y.as_ref())?)?))
            .collect::<Result<_>>()?;
        for (i, block) in self.blocks.iter().enumerate() {
            let silu_c = if conditions.len() == 1 { &conditions[0] } else { &conditions[i] };
            z = block.forward(&z, &block.modulate(silu_c)?)?;
        }
        let last = FinalLayer::halves(&self.final_layer.modulate(&conditions[0])?)?;
        self.embedder.unpatchify(&self.final_layer.forward(&z, &last)?)
    }
}
