//! Fresh parameters.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use rand::{Rng, RngCore};
use rand_distr::StandardNormal;

use super::config::Config;
use super::parameters::{Init, Parameter};
use crate::Result;
use crate::rng::{Stream, stream};

/// The published initialisation: Xavier matrices, zero biases, embeddings of deviation 0.02, modulations and the last
/// projection zero, so that every block starts as the identity.
///
/// A parameter depends on `seed` and its name alone, not on the device, the dtype or what else the network holds.
pub fn init(config: &Config, seed: u64, dtype: DType, device: &Device) -> Result<VarMap> {
    config.check()?;
    let variables = VarMap::new();
    {
        let mut data = variables.data().lock().expect("the map is new: nobody can have poisoned its lock");
        for parameter in config.parameters() {
            let var = Var::from_tensor(&draw(&parameter, parameter.init, seed, dtype, device)?)?;
            data.insert(parameter.name, var);
        }
    }
    Ok(variables)
}

/// Gives what starts at zero (gates, modulations, biases, the last projection) normal values of deviation `stdev`.
///
/// At initialisation the gates hide whole layers from the output and from the gradient; a test that wants to see them
/// opens the gates first.
pub fn perturb_gates(config: &Config, variables: &VarMap, seed: u64, stdev: f64) -> Result<()> {
    let data = variables.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for parameter in config.parameters().iter().filter(|p| p.init == Init::Zero) {
        if let Some(var) = data.get(&parameter.name) {
            var.set(&draw(parameter, Init::Normal(stdev), seed, var.dtype(), var.device())?)?;
        }
    }
    Ok(())
}

fn draw(parameter: &Parameter, init: Init, seed: u64, dtype: DType, device: &Device) -> Result<Tensor> {
    let rng = &mut stream(seed, Stream::Init, fnv1a(&parameter.name));
    let values: Vec<f64> = match init {
        Init::Zero => vec![0.0; parameter.len()],
        Init::Normal(stdev) => (0..parameter.len()).map(|_| stdev * normal(rng)).collect(),
        Init::Xavier { fan_in, fan_out } => {
            let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
            (0..parameter.len()).map(|_| rng.random_range(-bound..bound)).collect()
        }
    };
    Ok(Tensor::from_vec(values, parameter.shape.as_slice(), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

fn normal(rng: &mut dyn RngCore) -> f64 {
    rng.sample(StandardNormal)
}

/// Fowler, Noll and Vo's hash: fixed for ever, which `std`'s is not.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
