//! The built commands, run as a user types them, and small things to run them on.
#![allow(dead_code)] // each test binary uses its part

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::write_text;
use fpdm_core::dit::{Config, Labels, Size, init, perturb_gates};
use fpdm_core::{Diffusion, params};
use serde_json::Value;

/// `cargo test` builds the examples beside the tests.
pub(crate) fn example(name: &str) -> Result<Command> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("target/PROFILE/deps/TEST")?.join("examples");
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    ensure!(path.is_file(), "{} is not built; run `cargo test`, which builds it", path.display());
    let mut command = Command::new(path);
    command.env("HF_HUB_OFFLINE", "1").env("RUST_BACKTRACE", "0");
    Ok(command)
}

pub(crate) fn run(name: &str, arguments: &[&str]) -> Result<Output> {
    let output = example(name)?.args(arguments).output()?;
    ensure!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// The error of a run that must fail.
pub(crate) fn fails(name: &str, arguments: &[&str]) -> Result<String> {
    let output = example(name)?.args(arguments).output()?;
    ensure!(!output.status.success(), "{name} {arguments:?} succeeded");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Eight pictures of 16×16.
pub(crate) fn pictures(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for i in 0..8 {
        let wave = Tensor::arange(0f32, 3. * 16. * 16., &Device::Cpu)?.affine(0.05 * (i + 1) as f64, 0.)?.sin()?;
        let picture = fpdm_vae::image::from_tensor(&wave.reshape((1, 3, 16, 16))?.to_dtype(DType::F32)?)?;
        fpdm_vae::image::write_png(folder.join(format!("{i}.png")), &picture[0])?;
    }
    Ok(())
}

/// A network on 8×8 pixels.
pub(crate) fn small(labels: Labels) -> Config {
    Config { input_size: [8, 8], in_channels: 3, hidden_size: 32, num_heads: 2, labels, ..Config::fpdm(Size::S, 2) }
}

/// A folder with random weights, and what it says of their training.
pub(crate) fn save(folder: &Path, config: &Config, diffusion: Option<&Diffusion>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let weights = init(config, 3, DType::F32, &Device::Cpu)?;
    perturb_gates(config, &weights, 4, 0.1)?;
    params::save(&weights, folder.join("model.safetensors"))?;
    write_text(folder.join("config.json"), &config.to_json())?;
    if let Some(diffusion) = diffusion {
        write_text(folder.join(Diffusion::FILE), &diffusion.to_json())?;
    }
    Ok(())
}

pub(crate) fn random(folder: &Path, labels: Labels, diffusion: Option<&Diffusion>) -> Result<()> {
    save(folder, &small(labels), diffusion)
}

/// The account of a run.
pub(crate) fn account(out: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(out.join("samples.json"))?)?)
}

/// Pixels of a picture.
pub(crate) fn pixels(path: &Path) -> Result<Vec<u8>> {
    Ok(image::open(path)?.to_rgb8().into_raw())
}
