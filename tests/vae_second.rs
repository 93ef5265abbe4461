//! `AutoencoderKl` against a second implementation: that of candle-transformers.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
use fpdm_core::rng::{Stream, normal, stream};
use fpdm_vae::{AutoencoderKl, KlConfig, LatentCodec, Result, fresh};

const CPU: Device = Device::Cpu;

/// ‖a − b‖ / ‖b‖, in f32.
const TOLERANCE: f32 = 5e-5;

type Tensors = HashMap<String, Tensor>;

fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    assert_eq!(a.dims(), b.dims());
    let norm = |t: &Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.sqrt()?.to_scalar()?) };
    Ok(norm(&(a - b)?)? / norm(b)?)
}

/// Weights of a network, norms that are not the identity among them.
fn weights(config: &KlConfig, seed: u64) -> Result<Tensors> {
    let vars = VarMap::new();
    AutoencoderKl::new(config.clone(), fresh(&vars, seed, DType::F32, &CPU))?;
    let data = vars.data().lock().unwrap();
    let mut names: Vec<_> = data.keys().cloned().collect();
    names.sort();
    let weight = |(i, name): (usize, String)| {
        let t = data[&name].as_detached_tensor();
        let noise = normal(t.dims(), &mut stream(seed, Stream::Noise, i as u64), DType::F32, &CPU)?;
        let t = if name.contains("norm") { (t + (noise * 0.2)?)? } else { (t * 2.)? };
        Ok((name, t))
    };
    names.into_iter().enumerate().map(weight).collect()
}

/// The attention's names and shapes in older files.
fn old(weights: &Tensors) -> Result<Tensors> {
    let names = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
    let renamed = |(name, t): (&String, &Tensor)| {
        let name = names.iter().fold(name.clone(), |name, (new, old)| name.replace(new, old));
        Ok((name, if let &[o, i] = t.dims() { t.reshape((o, i, 1, 1))? } else { t.clone() }))
    };
    weights.iter().map(renamed).collect()
}

fn second(config: &KlConfig, weights: Tensors) -> Result<AutoEncoderKL> {
    let vb = VarBuilder::from_tensors(weights, DType::F32, &CPU);
    let theirs = AutoEncoderKLConfig {
        block_out_channels: config.block_out_channels.clone(),
        layers_per_block: config.layers_per_block,
        latent_channels: config.latent_channels,
        norm_num_groups: config.norm_num_groups,
        use_quant_conv: config.use_quant_conv,
        use_post_quant_conv: config.use_post_quant_conv,
    };
    Ok(AutoEncoderKL::new(vb, config.in_channels, config.out_channels, theirs)?)
}

/// One picture at a time: in a batch of more, its attention mixes rows up on the CPU (0.11.1; ours is compared with
/// PyTorch in batches of two by `vae_parity`).
fn each(t: &Tensor, of: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Tensor> {
    let rows: Vec<_> = (0..t.dim(0)?).map(|i| of(&t.narrow(0, i, 1)?)).collect::<candle_core::Result<_>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

/// Mean and log-variance, which the second implementation keeps to itself: it only gives samples. With another last
/// convolution its mean is either of ours, and its deviation e⁻³⁰.
fn second_encoded(config: &KlConfig, weights: &Tensors, x: &Tensor) -> Result<[Tensor; 2]> {
    let name = if config.use_quant_conv { "quant_conv" } else { "encoder.conv_out" };
    let (weight, bias) = (&weights[&format!("{name}.weight")], &weights[&format!("{name}.bias")]);
    let half = |i: usize| -> Result<Tensor> {
        let part = |t: &Tensor| t.narrow(0, i * config.latent_channels, config.latent_channels);
        let (weight, bias) = (part(weight)?, part(bias)?);
        let certain = Tensor::full(-60f32, config.latent_channels, &CPU)?;
        let mut weights = weights.clone();
        weights.insert(format!("{name}.weight"), Tensor::cat(&[&weight, &weight.zeros_like()?], 0)?);
        weights.insert(format!("{name}.bias"), Tensor::cat(&[&bias, &certain], 0)?);
        let second = second(config, weights)?;
        each(x, |x| second.encode(x)?.sample())
    };
    Ok([half(0)?, half(1)?])
}

#[test]
fn equals_candle_transformers() -> Result<()> {
    let small = KlConfig { block_out_channels: vec![8, 12, 16], norm_num_groups: 4, ..KlConfig::default() };
    let other = KlConfig {
        block_out_channels: vec![6, 9],
        layers_per_block: 2,
        norm_num_groups: 3,
        latent_channels: 5,
        use_quant_conv: false,
        use_post_quant_conv: false,
        ..KlConfig::default()
    };
    for (seed, config) in [small, other].into_iter().enumerate() {
        let weights = weights(&config, seed as u64)?;
        let x = normal((2, 3, 24, 16), &mut stream(7, Stream::Noise, 0), DType::F32, &CPU)?;
        for (names, weights) in [("new", weights.clone()), ("old", old(&weights)?)] {
            let ours = AutoencoderKl::from_tensors(config.clone(), names, weights.clone(), DType::F32, &CPU)?;
            let posterior = ours.posterior(&x)?;
            let [mean, log_var] = second_encoded(&config, &weights, &x)?;
            let z = normal(mean.dims(), &mut stream(8, Stream::Noise, 0), DType::F32, &CPU)?;
            let theirs = second(&config, weights)?;
            let decoded = each(&z, |z| theirs.decode(z))?;
            let errors = [
                distance(&posterior.mode(), &mean)?,
                distance(&posterior.log_var, &log_var)?,
                distance(&ours.decode(&(&z * config.scaling_factor)?)?, &decoded)?,
            ];
            println!("candle-transformers, config {seed}, {names} names: {errors:?}");
            assert!(errors.iter().all(|error| *error <= TOLERANCE), "config {seed}, {names} names: {errors:?}");
        }
    }
    Ok(())
}
