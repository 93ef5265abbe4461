//! Noise that belongs to an image, not to a batch.

use candle_core::{DType, Device, Shape, Tensor};
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Error, Result};
use rand_chacha::ChaCha8Rng;

/// Where a stochastic step gets its noise. Closures are sources.
pub trait Noise {
    /// Standard normal numbers in the shape, dtype and place of `x`, `(B, C, H, W)`.
    fn like(&mut self, x: &Tensor) -> Result<Tensor>;
}

impl<F: FnMut(&Tensor) -> Result<Tensor>> Noise for F {
    fn like(&mut self, x: &Tensor) -> Result<Tensor> {
        self(x)
    }
}

/// One stream of noise an image, a function of `(seed, image)` alone: an image is the same in every batch.
pub struct ImageNoise {
    streams: Vec<ChaCha8Rng>,
}

impl ImageNoise {
    /// The streams of the images with these numbers.
    pub fn new(seed: u64, images: &[u64]) -> Self {
        Self { streams: images.iter().map(|&i| rng::stream(seed, Stream::Noise, i)).collect() }
    }

    /// What a trajectory starts from: the first numbers of every stream, `(B, shape...)`. Call it once.
    pub fn start(&mut self, shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        rng::normal_each(&mut self.streams, shape, dtype, device)
    }
}

impl Noise for ImageNoise {
    fn like(&mut self, x: &Tensor) -> Result<Tensor> {
        match x.dims() {
            [batch, image @ ..] if *batch == self.streams.len() => {
                rng::normal_each(&mut self.streams, image, x.dtype(), x.device())
            }
            got => Err(Error::shape("ImageNoise: one image a stream", (self.streams.len(), "..."), got)),
        }
    }
}
