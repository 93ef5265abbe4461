//! From a folder or a file to an answer, and what happens where that cannot be.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use fpdm_core::checkpoint::{Checkpoint, Untold, Which, write_safetensors, write_text};
use fpdm_core::dit::{Config, Fpdit, Labels, Size, init, perturb_gates};
use fpdm_core::hub::{Hub, Source};
use fpdm_core::{
    Budget, Diffusion, Error, ImplicitModel, Normalisation, Parameterization, Picard, Pretrained, params, solve,
};

const CPU: Device = Device::Cpu;

fn config() -> Config {
    Config {
        input_size: [4, 8],
        hidden_size: 16,
        num_heads: 2,
        group: 2,
        labels: Labels::Classes(3),
        ..Config::fpdm(Size::S, 2)
    }
}

/// A folder as the Hub would hold it.
fn saved(folder: &Path) -> Result<VarMap> {
    let variables = init(&config(), 1, DType::F32, &CPU)?;
    perturb_gates(&config(), &variables, 2, 0.2)?;
    params::save(&variables, folder.join("model.safetensors"))?;
    write_text(folder.join("config.json"), &config().to_json())?;
    Ok(variables)
}

fn open(path: &Path) -> fpdm_core::Result<Pretrained> {
    let nobody = Hub { offline: true, ..Hub::new(path) };
    let source = Source::parse(path.to_str().expect("a path in UTF-8"))?;
    Pretrained::open(&source, Which::Ema, &nobody, &mut |_| {})
}

fn answer(model: &Fpdit) -> Result<Tensor> {
    let x = Tensor::arange(0f32, 128., &CPU)?.sin()?.reshape((1, 4, 4, 8))?.to_dtype(model.dtype())?;
    let problem = model.prepare(&x, &Tensor::new(&[300f32], &CPU)?, &Tensor::new(&[3u32], &CPU)?)?;
    let z = solve(&Picard::default(), &*problem.frozen, problem.z0.clone(), &mut Budget(3))?.z;
    Ok(problem.readout(&z)?.to_dtype(DType::F32)?)
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()? / b.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?)
}

#[test]
fn a_folder_gives_the_network_that_was_saved() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let variables = saved(folder.path())?;
    let expected = answer(&Fpdit::new(&config(), VarBuilder::from_varmap(&variables, DType::F32, &CPU))?)?;
    let pretrained = open(folder.path())?;
    assert_eq!(pretrained.config, config());
    assert_eq!(distance(&answer(&pretrained.fpdit(DType::F32, &CPU)?)?, &expected)?, 0.0);
    for (dtype, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 5e-2)] {
        let error = distance(&answer(&pretrained.fpdit(dtype, &CPU)?)?, &expected)?;
        assert!(error > 0.0 && error < tolerance, "{dtype:?}: {error}");
    }
    assert!(pretrained.dit(DType::F32, &CPU).unwrap_err().to_string().contains("fpdm"));
    Ok(())
}

#[test]
fn settings_come_from_diffusers_where_the_folder_is_diffusers() -> Result<()> {
    let fixtures = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let folder = tempfile::tempdir()?;
    let tensors = candle_core::safetensors::load(fixtures.join("dit_diffusers_layout.safetensors"), &CPU)?;
    let weights: Vec<(String, Tensor)> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("weights.")?.to_owned(), tensor.clone())))
        .collect();
    write_safetensors(folder.path().join("diffusion_pytorch_model.safetensors"), &weights)?;
    std::fs::copy(fixtures.join("dit_diffusers_layout.config.json"), folder.path().join("config.json"))?;
    let model = open(folder.path())?.dit(DType::F32, &CPU)?;
    let output = model.forward(&tensors["x"], &tensors["t"], &tensors["y"])?;
    assert!(distance(&output, &tensors["output"])? < 2e-5);
    Ok(())
}

#[test]
fn a_file_alone_says_what_it_can() -> Result<()> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/train_checkpoint.pt"));
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("heads"), "{error}");
    let weights = Checkpoint::open(&path, Which::Ema)?;
    let config = weights.config(&Untold { num_heads: Some(4), ..Default::default() })?;
    assert_eq!((config.hidden_size, config.input_size, config.labels), (48, [8, 8], Labels::Classes(10)));
    Pretrained::new(config, weights)?.fpdit(DType::F32, &CPU)?;
    Ok(())
}

#[test]
fn weights_that_do_not_fit_are_named_all_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    saved(folder.path())?;
    let path = folder.path().join("model.safetensors");
    let mut tensors: Vec<(String, Tensor)> = candle_core::safetensors::load(&path, &CPU)?.into_iter().collect();
    tensors.retain(|(name, _)| name != "blocks_pre.0.attn.qkv.bias");
    tensors.push(("surplus".into(), Tensor::zeros(3, DType::F32, &CPU)?));
    for (name, tensor) in &mut tensors {
        if name == "final_layer.linear.bias" {
            *tensor = tensor.narrow(0, 0, 5)?;
        }
    }
    write_safetensors(&path, &tensors)?;
    let Error::Weights { problems, origin } = open(folder.path()).err().context("must not open")? else {
        panic!("another error");
    };
    assert!(origin.contains("model.safetensors"));
    let all = problems.join("\n");
    for name in ["blocks_pre.0.attn.qkv.bias", "surplus", "final_layer.linear.bias"] {
        assert!(all.contains(name), "{name} in {all}");
    }
    assert_eq!(problems.len(), 3);
    Ok(())
}

#[test]
fn a_nan_in_the_weights_is_found_before_a_solve_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let variables = saved(folder.path())?;
    let bias = variables.data().lock().unwrap()["blocks_fixed_point.1.mlp.fc2.bias"].clone();
    bias.set(&Tensor::full(f32::NAN, bias.shape(), &CPU)?)?;
    params::save(&variables, folder.path().join("model.safetensors"))?;
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("blocks_fixed_point.1.mlp.fc2.bias") && error.contains("16"), "{error}");
    Ok(())
}

#[test]
fn weights_open_from_memory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    saved(folder.path())?;
    let said = Diffusion::new(Parameterization::V, "zero-snr".parse()?);
    write_text(folder.path().join("diffusion.json"), &said.to_json())?;
    let expected = open(folder.path())?;
    assert_eq!(expected.diffusion.as_ref(), Some(&said));
    let bytes = std::fs::read(folder.path().join("model.safetensors"))?;
    let opened = Pretrained::from_bytes("memory", &config().to_json(), bytes.clone())?.with_diffusion(said.clone())?;
    assert_eq!(opened.diffusion, expected.diffusion);
    let got = answer(&opened.fpdit(DType::F32, &CPU)?)?;
    assert_eq!(distance(&got, &answer(&expected.fpdit(DType::F32, &CPU)?)?)?, 0.0);

    let short = Pretrained::from_bytes("memory", &config().to_json(), bytes[..bytes.len() - 1].to_vec());
    assert!(matches!(short, Err(Error::Weights { origin, .. }) if origin == "memory"));
    let wrong = Diffusion { latents: Normalisation { std: vec![1.; 3], ..Default::default() }, ..said };
    let error = opened.with_diffusion(wrong).unwrap_err().to_string();
    assert!(error.contains("latents.std") && error.contains("4 channels"), "{error}");
    Ok(())
}

#[test]
fn a_bad_config_names_the_field_and_the_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    saved(folder.path())?;
    let path = folder.path().join("config.json");
    for (text, word) in [
        (config().to_json().replace("hidden_size", "width"), "width"),
        (config().to_json().replace("\"num_heads\": 2", "\"num_heads\": 3"), "num_heads"),
        ("{".to_owned(), "config.json"),
        ("[]".to_owned(), "config.json"),
    ] {
        write_text(&path, &text)?;
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(word), "{word} in {error}");
    }
    Ok(())
}
