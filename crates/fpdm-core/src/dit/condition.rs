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
    const HALF: usize = 128;
    let frequencies: Vec<f64> =
        (0..HALF).map(|i| (-(10000f64.ln()) * i as f64 / (HALF as f64 - shift)).exp()).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, HALF), &Device::Cpu)?.to_dtype(dtype)?.to_device(t.device())?;
    let angles = t.to_dtype(dtype)?.unsqueeze(1)?.broadcast_mul(&frequencies)?; // (B, 128)
    Ok(Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?)
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
    frequency_shift: f64,
    /// Classes, or the length of a label vector.
    count: usize,
    dtype: DType,
    device: Device,
    time: [Linear; 2],
    label: LabelEmbedder,
}

impl Conditioner {
    /// Reads `{prefix}t_embedder` and `{prefix}y_embedder`.
    pub(super) fn read(weights: &Weights, config: &Config, prefix: &str) -> Self {
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
        Self { frequency_shift: config.timestep_frequency_shift, count, dtype, device, time, label }
    }

    /// Time and label together, `(B, D)`.
    pub(super) fn both(&self, t: &Tensor, y: &Tensor, batch: usize) -> Result<Tensor> {
        let c = self.time(t, batch)?;
        match self.label(y, batch)? {
            Some(y) => Ok((c + y)?),
            None => Ok(c),
        }
    }

    /// Times `(B)` of any numeric dtype to `(B, D)`.
    pub(super) fn time(&self, t: &Tensor, batch: usize) -> Result<Tensor> {
        if t.dims() != [batch] {
            return Err(Error::shape("times `t` (B)", [batch], t.dims()));
        }
        let arithmetic = if self.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let t = t.to_device(&self.device)?;
        let e = timestep_embedding(&t, self.frequency_shift, arithmetic)?.to_dtype(self.dtype)?;
        self.time[1].forward(&fpdm_kernels::silu(&self.time[0].forward(&e)?)?)
    }

    /// Labels to `(B, D)`; `None` where the network has none.
    pub(super) fn label(&self, y: &Tensor, batch: usize) -> Result<Option<Tensor>> {
        match &self.label {
            LabelEmbedder::None => Ok(None),
            LabelEmbedder::Table(table) => {
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
                let index = Tensor::from_vec(index, batch, &self.device)?;
                Ok(Some(table.index_select(&index, 0)?))
            }
            LabelEmbedder::Mlp(first, second) => {
                let length = self.count;
                if y.dims() != [batch, length] {
                    return Err(Error::shape("label vectors `y` (B, L)", [batch, length], y.dims()));
                }
                let y = y.to_device(&self.device)?.to_dtype(self.dtype)?;
                Ok(Some(second.forward(&fpdm_kernels::silu(&first.forward(&y)?)?)?))
            }
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
