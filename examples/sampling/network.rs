//! Weights and codec, opened and found to fit each other.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::Which;
use fpdm_core::dit::{Architecture, Config, Labels};
use fpdm_core::hub::{Hub, Source};
use fpdm_core::{Diffusion, ImplicitModel, LatentCodec, Parameterization, Pretrained};
use fpdm_sample::{Explicit, Graphed, Graphs, Network, Work};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::flags::Place;
use super::{choice, embedded};

/// A network, its codec, and where they are.
pub(crate) struct Opened {
    pub(crate) config: Config,
    /// What `diffusion.json` says, where there is one.
    pub(crate) diffusion: Option<Diffusion>,
    pub(crate) device: Device,
    pub(crate) codec: Box<dyn LatentCodec>,
    model: Graphed<Box<dyn ImplicitModel>>,
    dtype: DType,
}

impl Opened {
    /// Opens what `place` names on `device`, the network's weights as `dtype`.
    pub(crate) fn open(place: &Place, dtype: &str, device: Device, graphs: &str) -> Result<Self> {
        let graphs: Graphs = graphs.parse().context("--graphs")?;
        let dtype = choice::dtype(dtype)?;
        let pretrained = weights(place)?;
        let (config, diffusion) = (pretrained.config.clone(), pretrained.diffusion.clone());
        let model: Box<dyn ImplicitModel> = match config.architecture {
            Architecture::Fpdm => Box::new(pretrained.fpdit(dtype, &device)?),
            Architecture::Dit => Box::new(Explicit::new(pretrained.dit(dtype, &device)?)),
        };
        let model = Graphed::new(model, graphs);
        let trained_with = diffusion.as_ref().and_then(|d| d.codec.as_ref());
        let name = match (&place.codec, trained_with, config.in_channels) {
            (Some(codec), ..) => codec.clone(),
            (None, ..) if place.is_default() => embedded::ORIGIN.to_owned(),
            (None, Some(codec), _) => codec.id.clone(),
            (None, None, 3) => "pixels".to_owned(),
            (None, None, 4) => "madebyollin/taesd".to_owned(),
            (None, None, n) => bail!("--codec: there is none by default for {n} channels; name one"),
        };
        // Where narrow numbers are fast, the codec has them too.
        let within = if device.is_cpu() { DType::F32 } else { dtype };
        let codec = match place.codec.is_none() && place.is_default() {
            true => embedded::codec(within, &device)?,
            false => fpdm_vae::open(&name, within, &device).with_context(|| format!("--codec {name}"))?,
        };
        let opened = Self { config, diffusion, device, codec, model, dtype };
        opened.check_codec(&name)?;
        Ok(opened)
    }

    /// Decodes one empty latent to find out before any work whether network and codec fit.
    fn check_codec(&self, name: &str) -> Result<()> {
        let ([h, w], channels) = (self.config.input_size, self.config.in_channels);
        let empty = Tensor::zeros((1, channels, h, w), DType::F32, &self.device)?;
        let pixels = self.codec.decode(&empty).with_context(|| {
            format!("--codec {name} does not fit weights of {channels} channels; name their own codec")
        })?;
        let factor = pixels.dim(2)? / h;
        let trained_with = self.diffusion.as_ref().and_then(|d| d.codec.as_ref());
        if let Some((wanted, id)) = trained_with.and_then(|codec| Some((codec.factor?, &codec.id)))
            && wanted != factor
        {
            bail!(
                "--codec {name} has {factor} pixels along a latent, but these weights were trained on latents of {id}, \
                 which has {wanted}; name that one"
            );
        }
        Ok(())
    }

    /// What the weights were trained for: as `diffusion.json` says; without one as what they most likely are, which is
    /// the published main training, or the released DiT.
    pub(crate) fn said(&self) -> Diffusion {
        let (prediction, schedule) = match self.config.architecture {
            Architecture::Fpdm => (Parameterization::V, "zero-snr"),
            Architecture::Dit => (Parameterization::Eps, "linear"),
        };
        let schedule = schedule.parse().expect("a name of fpdm-core");
        let usual = Diffusion { learned_variance: self.config.learn_sigma, ..Diffusion::new(prediction, schedule) };
        self.diffusion.clone().unwrap_or(usual)
    }

    /// More than one application is wasted on a network without an implicit part.
    pub(crate) fn usual_budget(&self) -> &'static str {
        if self.config.architecture == Architecture::Dit { "1each" } else { "4each" }
    }

    /// What a denoiser asks.
    pub(crate) fn network(&self, parameterization: Parameterization) -> Network<'_> {
        Network { model: &self.model, parameterization, dtype: self.dtype, work: Work::of(&self.config) }
    }

    /// Labels `y` of a batch: the given ones, or the null label for `None`.
    pub(crate) fn labels(&self, labels: &[Option<Label>]) -> Result<Tensor> {
        Ok(match self.config.labels {
            Labels::None => Tensor::zeros(labels.len(), DType::U32, &Device::Cpu)?,
            Labels::Vector(n) => {
                let mut y = Vec::with_capacity(labels.len() * n);
                for label in labels {
                    match label {
                        None => y.resize(y.len() + n, 0f32),
                        Some(Label::Vector(v)) if v.len() == n => y.extend_from_slice(v),
                        Some(other) => bail!("label {other:?}: these weights take vectors of {n} numbers"),
                    }
                }
                Tensor::from_vec(y, (labels.len(), n), &Device::Cpu)?
            }
            Labels::Classes(n) => {
                let class = |label: &Option<Label>| match label {
                    None => Ok(u32::try_from(n)?),
                    Some(Label::Class(class)) if (*class as usize) < n => Ok(*class),
                    Some(other) => bail!("label {other:?}: these weights have classes 0 to {}", n - 1),
                };
                Tensor::new(labels.iter().map(class).collect::<Result<Vec<u32>>>()?, &Device::Cpu)?
            }
        })
    }
}

/// What a picture shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Label {
    /// A class.
    Class(u32),
    /// What a network of label vectors is told.
    Vector(Vec<f32>),
}

fn weights(place: &Place) -> Result<Pretrained> {
    let source = match (&place.hub, &place.weights) {
        (Some(hub), _) => {
            ensure!(!hub.contains('@'), "--hub {hub}: give the revision as --revision");
            Source::parse(&format!("{hub}@{}", place.revision))?
        }
        (None, Some(path)) => Source::parse(path)?,
        (None, None) => return embedded::weights(),
    };
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
    Ok(pretrained)
}
