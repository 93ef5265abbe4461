//! `sample_ffhq` as a new user types it: with the weights that come with it, and no network.

mod command;

use std::path::Path;
use std::process::Output;

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use candle_nn::VarMap;
use command::*;
use fpdm_core::checkpoint::write_text;
use fpdm_core::dit::Labels;
use fpdm_core::{CodecId, Diffusion, params};
use fpdm_vae::{TinyAutoencoder, TinyConfig, fresh};
use serde_json::json;

/// The weights that come with the command.
#[test]
fn faces_come_with_the_command() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let here = |name: &str| folder.path().join(name);
    // A new user's machine: nothing cached, a working folder, and a network where nobody answers.
    let draw = |more: &[&str]| -> Result<Output> {
        let mut command = example("sample_ffhq")?;
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", "http://127.0.0.1:9").env("HF_HOME", here("cache"));
        Ok(command.current_dir(folder.path()).args(["--num", "2", "--steps", "3"]).args(more).output()?)
    };
    let drawn = |more: &[&str], out: &str| -> Result<Vec<u8>> {
        let output = draw(more)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        pixels(&here(out).join("000001.png"))
    };
    let once = drawn(&[], "samples")?;
    let said = account(&here("samples"))?;
    assert_eq!((&said["settings"]["sampler"], &said["settings"]["prediction"]), (&json!("euler"), &json!("flow")));
    assert_eq!(said["pictures"][1]["cost"]["block_passes"], json!(12), "2 applications a solve, as recommended");
    assert!(image::open(here("samples/000000.png"))?.to_rgb8().dimensions() == (192, 192));
    assert!(pixels(&here("samples/000000.png"))? != once, "each face has noise of its own");
    assert!(once == drawn(&["--out", "alone", "--batch", "1"], "alone")?, "the same face in another batch");
    let again = ["--from-image", "samples/000001.png", "--out", "again"];
    assert!(once == drawn(&again, "again")?, "the same face from what its picture says");
    assert!(!here("cache").exists(), "something was fetched");

    // Another codec of the same latents, other weights with their own codec, and commands that need other weights.
    let config = TinyConfig {
        encoder_block_out_channels: vec![8; 4],
        decoder_block_out_channels: vec![8; 4],
        num_encoder_blocks: vec![1; 4],
        num_decoder_blocks: vec![1; 4],
        ..TinyConfig::default()
    };
    let vars = VarMap::new();
    TinyAutoencoder::new(config.clone(), fresh(&vars, 0, DType::F32, &Device::Cpu))?;
    std::fs::create_dir(here("codec"))?;
    params::save(&vars, here("codec/diffusion_pytorch_model.safetensors"))?;
    write_text(here("codec/config.json"), &config.to_json())?;
    assert!(once != drawn(&["--codec", text(&here("codec")), "--out", "other"], "other")?);
    random(&here("model"), Labels::Classes(1), None)?;
    drawn(&["--weights", "model", "--out", "mine"], "mine")?;
    assert_eq!(account(&here("mine"))?["settings"]["prediction"], json!("v"));
    run("sweep", &["--budgets", "2each", "--steps", "2", "--num", "1", "--out", text(&here("sweep"))])?;
    let error = fails("sample", &["--out", text(&here("classes"))])?;
    assert!(error.contains("--hub") && error.contains("--weights"), "{error}");
    let error = String::from_utf8(draw(&["--weights", "org/none"])?.stderr)?;
    assert!(error.contains("org/none"), "{error}");

    // What is in the repository: small, of the dtype that was measured, and of no machine in particular.
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets");
    let mut bytes = 0;
    for file in ["fpdm/model.safetensors", "codec/diffusion_pytorch_model.safetensors"] {
        bytes += std::fs::metadata(assets.join(file))?.len();
        let tensors = candle_core::safetensors::load(assets.join(file), &Device::Cpu)?;
        assert!(tensors.values().all(|t| t.dtype() == DType::F16), "{file}");
    }
    assert!(bytes < 30_000_000, "{bytes} bytes");
    let diffusion = Diffusion::from_json(&std::fs::read_to_string(assets.join("fpdm/diffusion.json"))?)?;
    assert_eq!(diffusion.codec, Some(CodecId { id: "madebyollin/taesd".into(), factor: Some(8) }));
    let card = std::fs::read_to_string(assets.join("MODEL_CARD.md"))?;
    assert!(card.contains("must not be used") && !card.contains("TO BE FILLED"), "the model card is not finished");
    Ok(())
}
