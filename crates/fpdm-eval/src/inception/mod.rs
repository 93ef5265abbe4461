//! The Inception-v3 of FID.

mod blocks;
mod pool;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use fpdm_core::Result;

use crate::extractor::{FeatureExtractor, check_pictures, divisor};
use crate::resize::{Filter, resize};
use crate::weights::Weights;
use blocks::{Layers, Mixed, Unit};
use pool::largest;

/// The side of the pictures that it was trained on.
const SIDE: usize = 299;
/// The least side that leaves something after the last pooling.
const LEAST: usize = 75;
const WIDTH: usize = 2048;

/// Inception-v3 as FID uses it: 2048 features after the global mean.
///
/// Weights have the names of `pt_inception-2015-12-05`, the conversion of the TensorFlow graph of 2015-12-05 that FID
/// is defined by; those of the classifier (`fc`) are not used. Averages over 3×3 pixels leave out the padding, and the
/// last block takes the largest of 3×3 pixels where the one before takes the average. Pictures are resized to 299×299,
/// bilinear ([`Filter::Bilinear`]), and stay in [-1, 1]. A file whose layers are all narrower by one factor is taken for
/// such a network. Not differentiable: the largest of overlapping pixels has no gradient in candle.
///
/// # Reference
///
/// Szegedy et al. 2015, arXiv 1512.00567; Heusel et al. 2017, arXiv 1706.08500.
#[derive(Clone, Debug)]
pub struct InceptionV3 {
    device: Device,
    width: usize,
    stem: [Unit; 5],
    mixed: Vec<Mixed>,
}

impl InceptionV3 {
    /// The network with these tensors, on `device`. `origin` is for messages.
    ///
    /// # Errors
    /// [`Error::Weights`](fpdm_core::Error::Weights) with every missing, misshapen and unknown tensor.
    pub fn from_tensors(origin: &str, tensors: HashMap<String, Tensor>, device: &Device) -> Result<Self> {
        let weights = Weights::new(origin, tensors);
        // All widths of the published network are multiples of 16.
        let divisor = divisor(32, weights.outputs("Conv2d_1a_3x3.conv.weight")).min(16);
        let mut layers = Layers::new(weights, divisor, device);
        let stem = [
            layers.unit("Conv2d_1a_3x3", 3, 32, [3, 3], 2, 0)?,
            layers.unit("Conv2d_2a_3x3", 32 / divisor, 32, [3, 3], 1, 0)?,
            layers.unit("Conv2d_2b_3x3", 32 / divisor, 64, [3, 3], 1, 1)?,
            layers.unit("Conv2d_3b_1x1", 64 / divisor, 80, [1, 1], 1, 0)?,
            layers.unit("Conv2d_4a_3x3", 80 / divisor, 192, [3, 3], 1, 0)?,
        ];
        let mixed = blocks::mixed(&mut layers, 192 / divisor)?;
        layers.finish(|name| name.starts_with("fc.") || name.ends_with(".num_batches_tracked"))?;
        Ok(Self { device: device.clone(), width: WIDTH / divisor, stem, mixed })
    }
}

impl FeatureExtractor for InceptionV3 {
    fn name(&self) -> &'static str {
        "Inception-v3"
    }

    fn width(&self) -> usize {
        self.width
    }

    fn prepare(&self, pixels: &Tensor) -> Result<Tensor> {
        check_pictures("InceptionV3: pixels", pixels, 1)?;
        resize(&pixels.to_dtype(DType::F32)?, [SIDE, SIDE], Filter::Bilinear)
    }

    fn embed(&self, prepared: &Tensor) -> Result<Tensor> {
        check_pictures("InceptionV3: prepared pictures", prepared, LEAST)?;
        let x = prepared.to_dtype(DType::F32)?.to_device(&self.device)?;
        let [first, second, third, fourth, fifth] = &self.stem;
        let x = largest(&third.forward(&second.forward(&first.forward(&x)?)?)?, 2, 0)?;
        let mut x = largest(&fifth.forward(&fourth.forward(&x)?)?, 2, 0)?;
        for mixed in &self.mixed {
            x = mixed.forward(&x)?;
        }
        Ok(x.mean((2, 3))?)
    }
}
