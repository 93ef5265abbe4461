//! EfficientNet-Lite0.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use fpdm_core::{Error, Result};
use fpdm_kernels::Conv2d;
use rayon::prelude::*;

use crate::conv::Folded;
use crate::extractor::{FeatureExtractor, check_pictures, divisor};
use crate::resize::{Filter, resize};
use crate::weights::Weights;

/// The side of the pictures that it was trained on.
const SIDE: usize = 224;
/// Pictures at a time on the CPU: their widest layer should not leave the caches altogether.
const SLICE: usize = 4;

/// Stages of the published network: blocks, side of the kernel, first stride, how much wider inside, outputs.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
const STEM: usize = 32;
const HEAD: usize = 1280;

/// EfficientNet-Lite0: 1280 features after the global mean, from ImageNet classification.
///
/// Weights have the names of timm's `tf_efficientnet_lite0`; those of the classifier are not used. TensorFlow's
/// padding, ReLU6, batch norm folded into the convolutions. Pictures are resized to 224×224, bicubic
/// ([`Filter::Bicubic`]), the whole picture, and stay in [-1, 1], which is timm's normalisation for this network. A file
/// whose layers are all narrower by one factor is taken for such a network. Differentiable in the pixels.
///
/// # Reference
///
/// Tan and Le 2019, arXiv 1905.11946; the Lite variants of the TensorFlow TPU models.
#[derive(Clone, Debug)]
pub struct EfficientNetLite0 {
    device: Device,
    width: usize,
    stem: Folded,
    blocks: Vec<Block>,
    head: Folded,
}

/// An inverted residual; the first of the network does not widen.
#[derive(Clone, Debug)]
struct Block {
    widen: Option<Folded>,
    depthwise: Folded,
    kernel: usize,
    stride: usize,
    narrow: Folded,
    residual: bool,
}

const POINT: Conv2d = Conv2d { stride: 1, before: 0, after: 0, upsample: 1, relu: false, cap: None };
const POINT_RELU6: Conv2d = Conv2d { relu: true, cap: Some(6), ..POINT };

impl EfficientNetLite0 {
    /// The network with these tensors, on `device`. `origin` is for messages.
    ///
    /// # Errors
    /// [`Error::Weights`](fpdm_core::Error::Weights) with every missing, misshapen and unknown tensor.
    pub fn from_tensors(origin: &str, tensors: HashMap<String, Tensor>, device: &Device) -> Result<Self> {
        let w = &mut Weights::new(origin, tensors);
        let divisor = divisor(STEM, w.outputs("conv_stem.weight")).min(8);
        let mut from = STEM / divisor;
        let stem = Folded::new(w, "conv_stem", "bn1", [from, 3, 3, 3], device)?;
        let mut blocks = Vec::new();
        for (stage, (repeats, kernel, stride, expand, to)) in STAGES.into_iter().enumerate() {
            for block in 0..repeats {
                let stride = if block == 0 { stride } else { 1 };
                let to = to / divisor;
                blocks.push(Block::new(w, stage, block, Shape { from, to, expand, kernel, stride }, device)?);
                from = to;
            }
        }
        let width = HEAD / divisor;
        let head = Folded::new(w, "conv_head", "bn2", [width, from, 1, 1], device)?;
        let weights = std::mem::replace(w, Weights::new(origin, HashMap::new()));
        weights.finish(|name| name.starts_with("classifier.") || name.ends_with(".num_batches_tracked"))?;
        Ok(Self { device: device.clone(), width, stem, blocks, head })
    }

    fn slice(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.stem.forward(x, None, same(x, 3, 2))?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let x = self.head.forward(&x, None, POINT_RELU6)?;
        Ok(x.mean((2, 3))?)
    }
}

struct Shape {
    from: usize,
    to: usize,
    expand: usize,
    kernel: usize,
    stride: usize,
}

impl Block {
    fn new(w: &mut Weights, stage: usize, block: usize, shape: Shape, device: &Device) -> Result<Self> {
        let Shape { from, to, expand, kernel, stride } = shape;
        let at = format!("blocks.{stage}.{block}");
        let inner = from * expand;
        let mut norms = ["bn1", "bn2", "bn3"].into_iter().map(|norm| format!("{at}.{norm}"));
        let mut part = |conv: &str, shape: [usize; 4]| {
            let norm = norms.next().unwrap_or_default();
            Folded::new(w, &format!("{at}.{conv}"), &norm, shape, device)
        };
        let widen = (expand > 1).then(|| part("conv_pw", [inner, from, 1, 1])).transpose()?;
        let depthwise = part("conv_dw", [inner, 1, kernel, kernel])?;
        let last = if expand > 1 { "conv_pwl" } else { "conv_pw" };
        let narrow = part(last, [to, inner, 1, 1])?;
        Ok(Self { widen, depthwise, kernel, stride, narrow, residual: stride == 1 && from == to })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = match &self.widen {
            Some(widen) => &widen.forward(x, None, POINT_RELU6)?,
            None => x,
        };
        let y = self.depthwise.forward_depthwise(wide, same(wide, self.kernel, self.stride))?;
        self.narrow.forward(&y, self.residual.then_some(x), POINT)
    }
}

/// TensorFlow's padding: the result has a `stride`-th of the size, rounded up, and what is uneven goes behind.
/// Pictures are square.
fn same(x: &Tensor, kernel: usize, stride: usize) -> Conv2d {
    let total = padding(x.dims()[2], kernel, stride);
    Conv2d { stride, before: total / 2, after: total - total / 2, ..POINT_RELU6 }
}

fn padding(size: usize, kernel: usize, stride: usize) -> usize {
    ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size)
}

impl FeatureExtractor for EfficientNetLite0 {
    fn name(&self) -> &'static str {
        "EfficientNet-Lite0"
    }

    fn width(&self) -> usize {
        self.width
    }

    fn prepare(&self, pixels: &Tensor) -> Result<Tensor> {
        check_pictures("EfficientNetLite0: pixels", pixels, 1)?;
        resize(&pixels.to_dtype(DType::F32)?, [SIDE, SIDE], Filter::Bicubic)
    }

    fn embed(&self, prepared: &Tensor) -> Result<Tensor> {
        let what = "EfficientNetLite0: prepared pictures";
        check_pictures(what, prepared, 1)?;
        let (batch, _, height, width) = prepared.dims4()?;
        if height != width {
            return Err(Error::shape(format!("{what}, which are square"), (height, height), (height, width)));
        }
        let x = prepared.to_dtype(DType::F32)?.to_device(&self.device)?;
        if !self.device.is_cpu() || batch <= SLICE {
            return self.slice(&x);
        }
        // Each slice on a thread of its own: the small layers of one have no work for all threads.
        let starts: Vec<usize> = (0..batch).step_by(SLICE).collect();
        let parts: Vec<Tensor> = starts
            .into_par_iter()
            .map(|i| self.slice(&x.narrow(0, i, SLICE.min(batch - i))?))
            .collect::<Result<_>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}
