//! A trained network: its settings and its weights.

use std::path::Path;

use candle_core::{DType, Device};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Untold, Which};
use crate::dit::{Config, Dit, Fpdit};
use crate::hub::{HubClient, Located, Progress, Source};
use crate::{Diffusion, Error, Result};

/// Settings and weights that fit each other: checked when opened, read when a network is built.
///
/// [`Pretrained::from_bytes`] opens weights that are part of a program.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use fpdm_core::checkpoint::Which;
/// use fpdm_core::hub::{Hub, Source};
/// use fpdm_core::Pretrained;
///
/// let source = Source::parse("org/name@main")?; // or a folder, or a file
/// let pretrained = Pretrained::open(&source, Which::Ema, &Hub::from_env()?, &mut |_| {})?;
/// let model = pretrained.fpdit(DType::F32, &Device::Cpu)?;
/// # let _ = model;
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct Pretrained {
    /// From `config.json`, ours or diffusers'; without one, what the shapes of the weights tell.
    pub config: Config,
    /// From `diffusion.json`, where there is one.
    pub diffusion: Option<Diffusion>,
    /// The weights.
    pub weights: Checkpoint,
}

impl Pretrained {
    /// Opens weights from the Hub, a folder or a file.
    ///
    /// # Errors
    /// Those of [`Source::locate`] and [`Checkpoint::open`]; [`Error::Config`] for a bad `config.json` or
    /// `diffusion.json`, or for settings that no tensor tells where there is no `config.json`; [`Error::Weights`] that names every tensor that is missing, extra,
    /// misshaped or not finite.
    pub fn open(
        source: &Source,
        which: Which,
        client: &dyn HubClient,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let Located { config, diffusion, weights } = source.locate(client, progress)?;
        let weights = Checkpoint::from_files(&weights, which)?;
        let config = match config {
            Some(path) => read_config(&path, &weights)?,
            None => weights.config(&Untold::default())?,
        };
        let this = Self::new(config, weights)?;
        match diffusion {
            Some(path) => {
                let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
                this.with_diffusion(Diffusion::from_json(&text)?)
            }
            None => Ok(this),
        }
    }

    /// Opens the text of a `config.json`, and the bytes of a safetensors file in any of the layouts: nothing is read
    /// from a disk. `origin` is for messages.
    ///
    /// # Errors
    /// Those of [`Pretrained::new`]; [`Error::Config`] for a bad config, [`Error::Weights`] if the bytes are no
    /// safetensors.
    pub fn from_bytes(origin: &str, config: &str, weights: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        Self::new(Config::from_json(config)?, Checkpoint::from_bytes(origin, weights)?)
    }

    /// Settings of the caller's for weights that are already open.
    ///
    /// # Errors
    /// [`Error::Config`] if the settings are bad, [`Error::Weights`] if the weights are not those of such a network or
    /// not finite.
    pub fn new(config: Config, weights: Checkpoint) -> Result<Self> {
        config.check()?;
        weights.check_network(&config)?;
        weights.check_finite()?;
        Ok(Self { config, diffusion: None, weights })
    }

    /// The same, said to be trained so.
    ///
    /// # Errors
    /// Those of [`Diffusion::check`] and [`Diffusion::check_network`].
    pub fn with_diffusion(self, diffusion: Diffusion) -> Result<Self> {
        diffusion.check()?;
        diffusion.check_network(&self.config)?;
        Ok(Self { diffusion: Some(diffusion), ..self })
    }

    /// The implicit network, its weights cast to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Config`] if these are the weights of a [`Dit`].
    pub fn fpdit(&self, dtype: DType, device: &Device) -> Result<Fpdit> {
        Fpdit::new(&self.config, self.weights.var_builder(dtype, device))
    }

    /// The explicit network, its weights cast to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Config`] if these are the weights of an [`Fpdit`].
    pub fn dit(&self, dtype: DType, device: &Device) -> Result<Dit> {
        Dit::new(&self.config, self.weights.var_builder(dtype, device))
    }
}

/// Ours says `architecture`; diffusers' leaves to the shapes what it does not say.
fn read_config(path: &Path, weights: &Checkpoint) -> Result<Config> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| Error::config(path.display().to_string(), e.to_string()))?;
    if value.get("_class_name").is_none() && value.get("num_attention_heads").is_none() {
        return Config::from_json(&text);
    }
    weights.config(&Untold::from_diffusers(&value))
}
