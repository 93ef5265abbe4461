//! From times and labels to conditioning vectors.

use candle_core::{DType, Device, Tensor};

use super::config::{Config, Labels};
use super::linear::Linear;
use super::parameters::Weights;
use crate::{Error, Result};

/// Cosines then sines of `t` at 128 frequencies `10000^(-i / (128 - shift))`, `(B)` to `(B, 256)`.
///
/// `dtype` is that of the arithmetic: f32 or f64, never narrower, or neighbouring times would be told alike.
pub fn timestep_embedding(t: &Tensor, shift: f64, dtype: DType) -> Result<Tensor> {
    Ok(fpdm_kernels::waves(&t.to_dtype(dtype)?, &frequencies(shift, dtype, t.device())?, dtype)?)
}

/// Angles a unit of time, `(128)`.
fn frequencies(shift: f64, dtype: DType, device: &Device) -> Result<Tensor> {
    const HALF: usize = 128;
    let all: Vec<f64> = (0..HALF).map(|i| (-(10000f64.ln()) * i as f64 / (HALF as f64 - shift)).exp()).collect();
    Ok(Tensor::from_vec(all, HALF, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

/// What times are computed in, for weights of `dtype`.
fn arithmetic(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

#[derive(Clone, Debug)]
enum LabelEmbedder {
    None,
    Table(Tensor),
    Mlp(Linear, Linear),
}

/// Time and label embedding.
#[derive(Clone, Debug)]
pub(super) struct Conditioner {
    frequencies: Tensor,
    /// Classes, or the length of a label vector.
    count: usize,
    dtype: DType,
    device: Device,
    time: [Linear; 2],
    label: LabelEmbedder,
}

impl Conditioner {
    /// Reads `{prefix}t_embedder` and `{prefix}y_embedder`.
    pub(super) fn read(weights: &Weights, config: &Config, prefix: &str) -> Result<Self> {
        let linear = |name: &str| Linear::read(weights, &format!("{prefix}{name}"));
        let (count, label) = match config.labels {
            Labels::None => (0, LabelEmbedder::None),
            Labels::Classes(n) => {
                (n, LabelEmbedder::Table(weights.get(&format!("{prefix}y_embedder.embedding_table.weight"))))
            }
            Labels::Vector(n) => (n, LabelEmbedder::Mlp(linear("y_embedder.mlp.0"), linear("y_embedder.mlp.2"))),
        };
        let time = [linear("t_embedder.mlp.0"), linear("t_embedder.mlp.2")];
        let (dtype, device) = (time[0].w.dtype(), time[0].w.device().clone());
        let frequencies = frequencies(config.timestep_frequency_shift, arithmetic(dtype), &device)?;
        Ok(Self { frequencies, count, dtype, device, time, label })
    }

    /// Time and label together, `(B, D)`.
    pub(super) fn both(&self, t: &Tensor, y: Option<&Tensor>) -> Result<Tensor> {
        let c = self.time(t)?;
        match self.label(y)? {
            Some(y) => Ok((c + y)?),
            None => Ok(c),
        }
    }

    /// Times `(B)` of any numeric dtype as [`Conditioner::time`] wants them.
    pub(super) fn times(&self, t: &Tensor, batch: usize) -> Result<Tensor> {
        if t.dims() != [batch] {
            return Err(Error::shape("times `t` (B)", [batch], t.dims()));
        }
        Ok(t.to_device(&self.device)?.to_dtype(arithmetic(self.dtype))?)
    }

    /// [`Conditioner::times`] to `(B, D)`, on the device alone.
    pub(super) fn time(&self, t: &Tensor) -> Result<Tensor> {
        let e = fpdm_kernels::waves(t, &self.frequencies, self.dtype)?;
        self.time[1].forward(&fpdm_kernels::silu(&self.time[0].forward(&e)?)?)
    }

    /// Labels as [`Conditioner::label`] wants them: known to be in range, and on the device. `None` where the network has
    /// none.
    pub(super) fn labels(&self, y: &Tensor, batch: usize) -> Result<Option<Tensor>> {
        match &self.label {
            LabelEmbedder::None => Ok(None),
            LabelEmbedder::Table(_) => {
                if y.dims() != [batch] {
                    return Err(Error::shape("labels `y` (B)", [batch], y.dims()));
                }
                if !y.dtype().is_int() {
                    return Err(Error::shape("dtype of labels `y`", "an integer", y.dtype()));
                }
                // Read on the host: an index out of range would read foreign memory on a GPU. Keep `y` on the CPU to
                // spare a synchronisation.
                let classes = self.count;
                let host = y.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
                if let Some(bad) = host.iter().find(|&&label| label < 0 || label > classes as i64) {
                    return Err(Error::config(
                        "labels `y`",
                        format!("{bad} is out of range; classes are 0 to {}, {classes} is the null class", classes - 1),
                    ));
                }
                let index: Vec<u32> = host.into_iter().map(|label| label as u32).collect();
                Ok(Some(Tensor::from_vec(index, batch, &self.device)?))
            }
            LabelEmbedder::Mlp(..) => {
                let length = self.count;
                if y.dims() != [batch, length] {
                    return Err(Error::shape("label vectors `y` (B, L)", [batch, length], y.dims()));
                }
                Ok(Some(y.to_device(&self.device)?.to_dtype(self.dtype)?))
            }
        }
    }

    /// [`Conditioner::labels`] to `(B, D)`, on the device alone; `None` where the network has none.
    pub(super) fn label(&self, y: Option<&Tensor>) -> Result<Option<Tensor>> {
        match (&self.label, y) {
            (LabelEmbedder::Table(table), Some(y)) => Ok(Some(fpdm_kernels::lookup(table, y)?)),
            (LabelEmbedder::Mlp(first, second), Some(y)) => {
                Ok(Some(second.forward(&fpdm_kernels::silu(&first.forward(y)?)?)?))
            }
            _ => Ok(None),
        }
    }
}

/// `x` `(B, C, H, W)`, `t` `(B)`, and `y`, `(B)` in u32 or `(B, L)`, where there are labels: checked, and on the device.
pub(super) struct Inputs {
    pub(super) x: Tensor,
    pub(super) t: Tensor,
    pub(super) y: Option<Tensor>,
}

impl Inputs {
    pub(super) fn into_vec(self) -> Vec<Tensor> {
        [self.x, self.t].into_iter().chain(self.y).collect()
    }

    /// What [`Inputs::into_vec`] made.
    pub(super) fn from_slice(inputs: &[Tensor]) -> Result<Self> {
        match inputs {
            [x, t] => Ok(Self { x: x.clone(), t: t.clone(), y: None }),
            [x, t, y] => Ok(Self { x: x.clone(), t: t.clone(), y: Some(y.clone()) }),
            _ => Err(Error::shape("`inputs`: x, t and perhaps y", "2 or 3 tensors", inputs.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cosines_then_sines() -> Result<()> {
        let t = Tensor::new(&[0f64, 1.0], &Device::Cpu)?;
        let e = timestep_embedding(&t, 0.0, DType::F64)?.to_vec2::<f64>()?;
        assert!(e[0][..128].iter().all(|&v| v == 1.0) && e[0][128..].iter().all(|&v| v == 0.0));
        assert_eq!((e[1][0], e[1][128]), (1f64.cos(), 1f64.sin()));
        Ok(())
    }
}
