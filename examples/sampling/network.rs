//! Weights and codec, opened and found to fit each other.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::Which;
use fpdm_core::dit::{Architecture, Config, Labels};
use fpdm_core::hub::{Hub, Source};
use fpdm_core::{ImplicitModel, LatentCodec, Parameterization, Pretrained};
use fpdm_sample::{Explicit, Network, Work};
use indicatif::{ProgressBar, ProgressStyle};

use super::choice;
use super::settings::Settings;

/// A network, its codec, and where they are.
pub(crate) struct Opened {
    pub(crate) config: Config,
    pub(crate) device: Device,
    pub(crate) codec: Box<dyn LatentCodec>,
    model: Box<dyn ImplicitModel>,
    dtype: DType,
    parameterization: Parameterization,
}

impl Opened {
    /// Opens what `settings` name on `device`.
    pub(crate) fn open(settings: &Settings, device: Device) -> Result<Self> {
        let dtype = choice::dtype(&settings.dtype)?;
        let parameterization = settings.prediction.parse()?;
        let source = source(settings)?;
        let client = match source {
            // Needs no cache, so no home directory either.
            Source::Folder(_) | Source::File(_) => Hub { offline: true, ..Hub::new("") },
            Source::Hub { .. } => Hub::from_env()?,
        };
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template("{msg} {bytes} of {total_bytes} {wide_bar}")?);
        let pretrained = Pretrained::open(&source, Which::Ema, &client, &mut |p| {
            bar.set_message(p.file.to_owned());
            bar.set_length(p.total.unwrap_or(p.received));
            bar.set_position(p.received);
        })?;
        bar.finish_and_clear();
        let config = pretrained.config.clone();
        let model: Box<dyn ImplicitModel> = match config.architecture {
            Architecture::Fpdm => Box::new(pretrained.fpdit(dtype, &device)?),
            Architecture::Dit => Box::new(Explicit::new(pretrained.dit(dtype, &device)?)),
        };
        let codec = match (&settings.codec, config.in_channels) {
            (Some(codec), _) => codec.as_str(),
            (None, 3) => "pixels",
            (None, 4) => "madebyollin/taesd",
            (None, n) => bail!("--codec: there is none by default for {n} channels; name one"),
        };
        let codec_of = fpdm_vae::open(codec, DType::F32, &device).with_context(|| format!("--codec {codec}"))?;
        let opened = Self { config, device, codec: codec_of, model, dtype, parameterization };
        // Decoding one empty latent finds out before any work whether the two fit.
        let [h, w] = opened.config.input_size;
        let empty = Tensor::zeros((1, opened.config.in_channels, h, w), DType::F32, &opened.device)?;
        opened.codec.decode(&empty).with_context(|| {
            format!(
                "--codec {codec} does not fit weights of {} channels; name their own codec",
                opened.config.in_channels
            )
        })?;
        Ok(opened)
    }

    /// What a denoiser asks.
    pub(crate) fn network(&self) -> Network<'_> {
        Network {
            model: &*self.model,
            parameterization: self.parameterization,
            dtype: self.dtype,
            work: Work::of(&self.config),
        }
    }

    /// Classes to choose from; 0 without labels.
    pub(crate) fn classes(&self) -> usize {
        if let Labels::Classes(n) = self.config.labels { n } else { 0 }
    }

    /// Labels `y` of a batch: the given classes, or the null label for `None`.
    pub(crate) fn labels(&self, classes: &[Option<u32>]) -> Result<Tensor> {
        Ok(match self.config.labels {
            Labels::None => Tensor::zeros(classes.len(), DType::U32, &Device::Cpu)?,
            // The zero vector is the null label, and the only one a command line can say.
            Labels::Vector(n) => Tensor::zeros((classes.len(), n), DType::F32, &Device::Cpu)?,
            Labels::Classes(n) => {
                let null = u32::try_from(n)?;
                let y: Vec<u32> = classes.iter().map(|class| class.unwrap_or(null)).collect();
                Tensor::new(y, &Device::Cpu)?
            }
        })
    }
}

fn source(settings: &Settings) -> Result<Source> {
    match (&settings.hub, &settings.weights) {
        (Some(hub), _) => {
            ensure!(!hub.contains('@'), "--hub {hub}: give the revision as --revision");
            Ok(Source::parse(&format!("{hub}@{}", settings.revision))?)
        }
        (None, Some(path)) => Ok(Source::parse(path)?),
        (None, None) => bail!("no weights; name some with --hub org/name, or with --weights, a folder or a file"),
    }
}
