//! Weights of a network that is to be trained.

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::{Init, VarBuilder, VarMap, var_builder::SimpleBackend};
use fpdm_core::rng::{Stream, stream};
use rand::Rng;
use rand_distr::StandardNormal;

/// Fills `vars` with what a network asks for: as `VarBuilder::from_varmap`, but a tensor depends on `seed` and its name
/// alone, while Candle draws it from the generator of the device, which cannot be seeded on the CPU. A name that `vars`
/// already has keeps its tensor.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::VarMap;
/// use fpdm_vae::{TinyAutoencoder, TinyConfig, fresh};
///
/// let sum = |seed| -> fpdm_vae::Result<f32> {
///     let vars = VarMap::new();
///     TinyAutoencoder::new(TinyConfig::default(), fresh(&vars, seed, DType::F32, &Device::Cpu))?;
///     let sum = vars.data().lock().unwrap()["decoder.layers.0.weight"].abs()?.sum_all()?.to_scalar()?;
///     Ok(sum)
/// };
/// assert!(sum(1)? == sum(1)? && sum(1)? != sum(2)?);
/// # fpdm_vae::Result::<()>::Ok(())
/// ```
pub fn fresh(vars: &VarMap, seed: u64, dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Fresh { vars: vars.clone(), seed }), dtype, device.clone())
}

struct Fresh {
    vars: VarMap,
    seed: u64,
}

impl SimpleBackend for Fresh {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut vars = self.vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(var) = vars.get(name) {
            if *var.shape() != shape {
                candle_core::bail!("`{name}`: expected {:?}, got {:?}", shape.dims(), var.dims());
            }
            return Ok(var.as_tensor().clone());
        }
        let rng = &mut stream(self.seed, Stream::Init, fnv1a(name));
        let values: Vec<f64> = match init {
            Init::Const(value) => vec![value; shape.elem_count()],
            Init::Uniform { lo, up } => (0..shape.elem_count()).map(|_| lo + (up - lo) * rng.random::<f64>()).collect(),
            Init::Randn { mean, stdev } => {
                (0..shape.elem_count()).map(|_| mean + stdev * rng.sample::<f64, _>(StandardNormal)).collect()
            }
            Init::Kaiming { .. } => candle_core::bail!("`{name}`: a Kaiming start is not known; give its bounds"),
        };
        let values = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
        let var = Var::from_tensor(&values)?;
        let tensor = var.as_tensor().clone();
        vars.insert(name.to_owned(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let vars = self.vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match vars.get(name) {
            Some(var) => Ok(var.as_tensor().clone()),
            None => candle_core::bail!("tensor `{name}` is missing"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner()).contains_key(name)
    }
}

/// Fowler, Noll and Vo's hash: fixed for ever, which `std`'s is not.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
