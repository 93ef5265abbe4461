//! Random numbers from the host, the same on every device: each stream is a function of `(seed, stream, index)` alone.
//!
//! Candle cannot seed its CPU generator, and its CUDA generator starts alike in every process. So noise is made here
//! with ChaCha, and uploaded. Sample `i` of a batch draws from stream number `i` of its own, so what it gets depends
//! neither on the size of the batch nor on its place in it, and a run can be resumed or split anywhere.
//!
//! ```
//! use candle_core::{DType, Device};
//! use fpdm_core::rng::{self, Stream};
//!
//! let alone = rng::normal_batch(42, Stream::Noise, &[7], (4, 2), DType::F32, &Device::Cpu)?;
//! let batch = rng::normal_batch(42, Stream::Noise, &[5, 6, 7], (4, 2), DType::F32, &Device::Cpu)?;
//! assert_eq!(alone.to_vec3::<f32>()?[0], batch.to_vec3::<f32>()?[2]);
//! # fpdm_core::Result::<()>::Ok(())
//! ```

use candle_core::{DType, Device, Shape, Tensor};
use rand::distr::{Distribution, StandardUniform};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;

use crate::{Error, Result};

/// What numbers are drawn for. The numbers are part of every stored result: new streams go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Stream {
    /// Noise that latents start from or are mixed with; the index is the sample.
    Noise = 1,
    /// Class labels to sample; the index is the sample.
    Label = 2,
    /// Initial weights; the index is up to the network.
    Init = 3,
    /// Iteration counts of stochastic gradients; the index is the training step.
    Solver = 4,
    /// The order of the data; the index is the epoch or the batch.
    Data = 5,
    /// Times of training samples; the index is the sample.
    Time = 6,
    /// Which labels are dropped for guidance; the index is the sample.
    Drop = 7,
}

/// The generator of `(seed, stream, index)`. Different triples are independent of each other.
///
/// # Reference
///
/// Bernstein 2008, ChaCha, 8 rounds; the triple is the 256-bit key.
///
/// ```
/// use fpdm_core::rng::{Stream, stream};
/// use rand::RngCore;
///
/// assert_eq!(stream(1, Stream::Noise, 2).next_u64(), stream(1, Stream::Noise, 2).next_u64());
/// assert_ne!(stream(1, Stream::Noise, 2).next_u64(), stream(1, Stream::Label, 2).next_u64());
/// ```
pub fn stream(seed: u64, stream: Stream, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, stream as u64, index, 0]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Standard normal numbers; in another dtype, the same rounded.
///
/// # Cost
///
/// Drawn one by one on the host, uploaded once.
pub fn normal<R: RngCore + ?Sized>(
    shape: impl Into<Shape>,
    rng: &mut R,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    draw(StandardNormal, shape.into(), rng, dtype, device)
}

/// Uniform numbers in [0, 1); in another dtype, the same rounded, which can give 1.
pub fn uniform<R: RngCore + ?Sized>(
    shape: impl Into<Shape>,
    rng: &mut R,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    draw(StandardUniform, shape.into(), rng, dtype, device)
}

/// Standard normal numbers `(B, shape...)`, sample `indices[b]` from its own [`stream`].
pub fn normal_batch(
    seed: u64,
    what: Stream,
    indices: &[u64],
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let mut rngs: Vec<_> = indices.iter().map(|&i| stream(seed, what, i)).collect();
    normal_each(&mut rngs, shape, dtype, device)
}

/// Standard normal numbers `(B, shape...)`, sample `b` from `rngs[b]`, which moves on: for noise at every step.
///
/// # Cost
///
/// Samples are drawn by several threads; the numbers do not depend on how many.
pub fn normal_each<R: RngCore + Send>(
    rngs: &mut [R],
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    if rngs.is_empty() {
        return Err(Error::config("indices", "an empty batch has no noise; pass one index a sample"));
    }
    check_float(dtype)?;
    let sample = shape.into();
    let shape = [&[rngs.len()], sample.dims()].concat();
    let noise = match dtype {
        // Rounded as they are drawn; the others by the tensor library.
        DType::F32 => Tensor::from_vec(rows(rngs, sample.elem_count(), |v| v as f32), shape, &Device::Cpu)?,
        _ => Tensor::from_vec(rows(rngs, sample.elem_count(), |v| v), shape, &Device::Cpu)?.to_dtype(dtype)?,
    };
    Ok(noise.to_device(device)?)
}

/// `len` numbers of each generator, one after the other.
fn rows<R, T>(rngs: &mut [R], len: usize, round: impl Fn(f64) -> T + Sync) -> Vec<T>
where
    R: RngCore + Send,
    T: Copy + Default + Send,
{
    let mut values = vec![T::default(); rngs.len() * len];
    values.par_chunks_mut(len.max(1)).zip(rngs.par_iter_mut()).for_each(|(row, rng)| {
        for value in row {
            *value = round(rng.sample(StandardNormal));
        }
    });
    values
}

fn check_float(dtype: DType) -> Result<()> {
    if dtype.is_float() {
        return Ok(());
    }
    Err(Error::config("dtype", format!("{dtype:?} cannot hold noise; use a floating point type")))
}

fn draw<R: RngCore + ?Sized>(
    what: impl Distribution<f64>,
    shape: Shape,
    rng: &mut R,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    check_float(dtype)?;
    let values: Vec<f64> = rng.sample_iter(what).take(shape.elem_count()).collect();
    // Converted on the host, since not every device knows f64.
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}
