//! A trained network: its settings and its weights.

use std::path::Path;

use candle_core::{DType, Device};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Which};
use crate::dit::{Config, Dit, Fpdit};
use crate::hub::{HubClient, Located, Progress, Source};
use crate::{Error, Result};

/// Settings and weights that fit each other: checked when opened, read when a network is built.
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
    /// The weights.
    pub weights: Checkpoint,
}

impl Pretrained {
    /// Opens weights from the Hub, a folder or a file.
    ///
    /// # Errors
    /// Those of [`Source::locate`] and [`Checkpoint::open`]; [`Error::Config`] for a bad `config.json`, or for settings
    /// that no tensor tells where there is none; [`Error::Weights`] that names every tensor that is missing, extra,
    /// misshaped or not finite.
    pub fn open(
        source: &Source,
        which: Which,
        client: &dyn HubClient,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let Located { config, weights } = source.locate(client, progress)?;
        let weights = Checkpoint::from_files(&weights, which)?;
        let config = match config {
            Some(path) => read_config(&path, &weights)?,
            None => weights.hints()?.config()?,
        };
        Self::new(config, weights)
    }

    /// Settings of the caller's for weights that are already open.
    ///
    /// # Errors
    /// [`Error::Config`] if the settings are bad, [`Error::Weights`] if the weights are not those of such a network or
    /// not finite.
    pub fn new(config: Config, weights: Checkpoint) -> Result<Self> {
        config.check()?;
        let mut expected: Vec<_> = config.parameters().into_iter().map(|p| (p.name, p.shape)).collect();
        expected.push(("pos_embed".into(), vec![1, config.tokens(), config.hidden_size]));
        weights.check(&expected)?;
        weights.check_finite()?;
        Ok(Self { config, weights })
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
    let mut hints = weights.hints()?;
    hints.read_diffusers(&value);
    hints.config()
}
