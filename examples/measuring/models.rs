//! The models that are compared.

use anyhow::{Context, Result};
use candle_core::Device;
use fpdm_core::dit::{Architecture, Labels};
use fpdm_core::{Parameterization, Schedule};

use super::options::{Measure, named};
use crate::sampling::flags::Place;
use crate::sampling::network::{Label, Opened};

/// A model under a name.
pub(crate) struct Model {
    /// The same for all seeds of it.
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) opened: Opened,
}

impl Model {
    pub(crate) fn open_all(options: &Measure, device: &Device) -> Result<Vec<Self>> {
        let open = |text: &String| {
            let (name, folder) = named(text);
            let place =
                Place { hub: None, revision: "main".to_owned(), weights: Some(folder), codec: options.codec.clone() };
            let opened = Opened::open(&place, &options.dtype, device.clone(), &options.graphs).with_context(|| text.clone())?;
            Ok(Self { name, place, opened })
        };
        options.models.iter().map(open).collect()
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
