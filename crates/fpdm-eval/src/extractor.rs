//! From pictures to features.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fpdm_core::checkpoint::{Which, read_tensors};
use fpdm_core::hub::{Hub, Source};
use fpdm_core::{Error, Result};

use crate::{EfficientNetLite0, InceptionV3};

/// A network whose last layer but one describes a picture.
pub trait FeatureExtractor: Send + Sync {
    /// What distances in these features must be named by.
    fn name(&self) -> &'static str;

    /// Features of a picture.
    fn width(&self) -> usize;

    /// Pixels `(B, 3, H, W)` in [-1, 1] of any size → the same pictures as the network wants them.
    ///
    /// # Errors
    /// [`Error::Shape`] if `pixels` is no batch of pictures.
    fn prepare(&self, pixels: &Tensor) -> Result<Tensor>;

    /// Prepared pictures → `(B, width)` in f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are too small for the network or no batch of pictures.
    fn embed(&self, prepared: &Tensor) -> Result<Tensor>;

    /// [`FeatureExtractor::prepare`] and [`FeatureExtractor::embed`].
    ///
    /// # Errors
    /// Those of the two.
    fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.embed(&self.prepare(pixels)?)
    }
}

/// The networks of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// [`EfficientNetLite0`].
    EfficientNetLite0,
    /// [`InceptionV3`].
    InceptionV3,
}

/// Opens a network with the weights of `source`: a file (safetensors, or an archive of `torch.save`), a folder, or a
/// Hub repository such as `timm/tf_efficientnet_lite0.in1k`. Returns the path of the weights too, to tell them apart.
///
/// # Errors
/// [`Error::Config`] if the text is no source, [`Error::Weights`] with all missing, misshapen and unknown tensors,
/// [`Error::Hub`] and [`Error::Io`] if a file cannot be had.
pub fn open(features: Features, source: &str, device: &Device) -> Result<(Box<dyn FeatureExtractor>, PathBuf)> {
    let source = Source::parse(source)?;
    let client = match source {
        // Needs no cache, so no home directory either.
        Source::Folder(_) | Source::File(_) => Hub { offline: true, ..Hub::new("") },
        Source::Hub { .. } => Hub::from_env()?,
    };
    let found = source.locate(&client, &mut |_| {})?;
    let [path] = found.weights.as_slice() else {
        let problem = format!("{} files of weights; these networks come in one", found.weights.len());
        return Err(Error::Weights { origin: source.to_string(), problems: vec![problem] });
    };
    Ok((of_file(features, path, device)?, path.clone()))
}

fn of_file(features: Features, path: &Path, device: &Device) -> Result<Box<dyn FeatureExtractor>> {
    let tensors = read_tensors(path, Which::Model)?;
    let origin = path.display().to_string();
    Ok(match features {
        Features::EfficientNetLite0 => Box::new(EfficientNetLite0::from_tensors(&origin, tensors, device)?),
        Features::InceptionV3 => Box::new(InceptionV3::from_tensors(&origin, tensors, device)?),
    })
}

/// `x` is `(B, 3, H, W)` with sides of at least `least`, in floating point numbers.
pub(crate) fn check_pictures(what: &str, x: &Tensor, least: usize) -> Result<()> {
    match *x.dims() {
        [b, 3, h, w] if b > 0 && h >= least && w >= least && x.dtype().is_float() => Ok(()),
        _ => Err(Error::Shape {
            what: what.to_owned(),
            expected: format!("(B, 3, H, W) of floating point numbers with B positive, H and W at least {least}"),
            got: format!("{:?} of {:?}", x.dims(), x.dtype()),
        }),
    }
}

/// How much wider the published network is than one whose layer of `published` outputs has `outputs`.
pub(crate) fn divisor(published: usize, outputs: Option<usize>) -> usize {
    match outputs {
        Some(n) if n > 0 && published.is_multiple_of(n) => published / n,
        // The shapes will be complained about one by one.
        _ => 1,
    }
}
