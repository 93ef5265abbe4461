//! The models that are compared.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use fpdm_core::dit::{Architecture, Labels};
use fpdm_core::{Parameterization, Schedule};

use super::options::{Measure, named};
use crate::sampling::choice;
use crate::sampling::flags::Place;
use crate::sampling::network::{Label, Opened};

/// A model under a name.
pub(crate) struct Model {
    /// The same for all seeds of it.
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) opened: Opened,
    codec_dtype: DType,
}

impl Model {
    pub(crate) fn open_all(options: &Measure, device: &Device) -> Result<Vec<Self>> {
        let open = |text: &String| {
            let (name, folder) = named(text);
            let place =
                Place { hub: None, revision: "main".to_owned(), weights: Some(folder), codec: options.codec.clone() };
            let mut opened =
                Opened::open(&place, &options.dtype, device.clone(), &options.graphs).with_context(|| text.clone())?;
            let codec_dtype = choice::dtype(&options.codec_dtype).context("--codec-dtype")?;
            // As sampling opens it.
            let within = if device.is_cpu() { DType::F32 } else { choice::dtype(&options.dtype)? };
            if codec_dtype != within {
                let trained_with = opened.diffusion.as_ref().and_then(|said| said.codec.as_ref());
                let codec = place.codec.as_ref().or(trained_with.map(|codec| &codec.id));
                let codec = codec.context("--codec-dtype: name the codec with --codec")?;
                opened.codec = fpdm_vae::open(codec, codec_dtype, device)?;
            }
            Ok(Self { name, place, opened, codec_dtype })
        };
        options.models.iter().map(open).collect()
    }

    /// Latents as the codec knows them → pixels `(N, 3, H, W)` in f32, cut to the range that a file could hold.
    pub(crate) fn decode(&self, z: &Tensor) -> Result<Tensor> {
        let pixels = self.opened.codec.decode(&z.to_dtype(self.codec_dtype)?)?;
        Ok(pixels.to_dtype(DType::F32)?.clamp(-1f32, 1f32)?)
    }

    /// Whether a word of `only` fits: fpdm or dit, flow or vp, or the name.
    pub(crate) fn is(&self, word: &str) -> bool {
        let said = self.opened.said();
        let flow = said.prediction == Parameterization::Flow || matches!(said.schedule, Schedule::Flow { .. });
        match word {
            "fpdm" => self.opened.config.architecture == Architecture::Fpdm,
            "dit" => self.opened.config.architecture == Architecture::Dit,
            "flow" => flow,
            "vp" => !flow,
            name => self.name == name,
        }
    }

    /// Classes in turn, so that there are equally many of each.
    pub(crate) fn labels(&self, images: &[u64]) -> Vec<Option<Label>> {
        let label = |&image: &u64| match self.opened.config.labels {
            Labels::Classes(n) => Some(Label::Class((image % n as u64) as u32)),
            _ => None,
        };
        images.iter().map(label).collect()
    }
}
