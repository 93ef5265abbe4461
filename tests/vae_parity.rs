//! Codecs against PyTorch.
//!
//! `FPDM_PARITY_DIR` names a folder with a `manifest.json` (default: `tests/fixtures`) whose cases of kind `vae` are
//! run. `FPDM_TAESD_DIR` names a folder with the published TAESD; with it, real photographs are taken from
//! `taesd_expected.safetensors` in the first folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use fpdm_vae::{AutoencoderKl, KlConfig, LatentCodec, TinyAutoencoder, TinyConfig, image, open, round_trip};
use serde_json::Value;

/// ‖a − b‖ / ‖b‖, f32 on the CPU.
const TOLERANCE: f64 = 5e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn parity_dir() -> PathBuf {
    std::env::var_os("FPDM_PARITY_DIR").map_or_else(fixtures, PathBuf::from)
}

fn load(path: impl AsRef<Path>) -> Result<HashMap<String, Tensor>> {
    let path = path.as_ref();
    candle_core::safetensors::load(path, &Device::Cpu).with_context(|| path.display().to_string())
}

fn norm(x: &Tensor) -> Result<f64> {
    Ok(x.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar()?)
}

/// The largest relative error of some tensors.
struct Worst(f64);

impl Worst {
    fn compare(&mut self, what: &str, ours: &Tensor, theirs: &Tensor) -> Result<()> {
        ensure!(ours.dims() == theirs.dims(), "{what}: {:?} for {:?}", ours.dims(), theirs.dims());
        let error = norm(&(ours - theirs)?)? / norm(theirs)?;
        ensure!(error <= TOLERANCE, "{what}: relative error {error:.2e} over {TOLERANCE:.0e}");
        self.0 = self.0.max(error);
        Ok(())
    }
}

/// Python writes numbers that JSON does not know; outside of strings they become null.
fn json(text: &str) -> Result<Value> {
    let mut out = String::with_capacity(text.len());
    let mut quoted = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let bare = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| !quoted && rest.starts_with(word));
        let skip = match (bare, c) {
            (Some(word), _) => {
                out.push_str("null");
                word.len()
            }
            (None, '\\') if quoted => {
                let escaped: String = rest.chars().take(2).collect();
                out.push_str(&escaped);
                escaped.len()
            }
            (None, c) => {
                quoted ^= c == '"';
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[skip..];
    }
    Ok(serde_json::from_str(&out)?)
}

fn check_kl(codec: &AutoencoderKl, tensors: &HashMap<String, Tensor>, decoded_from: &str) -> Result<f64> {
    let get = |name: &str| tensors.get(name).with_context(|| format!("no tensor {name}"));
    let mut worst = Worst(0.);
    let posterior = codec.posterior(get("image")?)?;
    worst.compare("mean", &posterior.mode(), get("mean")?)?;
    worst.compare("logvar", &posterior.log_var, get("logvar")?)?;
    let scale = codec.config().scaling_factor;
    let moments = codec.encode(get("image")?)?;
    worst.compare("scaled mean", &(&moments.mean / scale)?, get("mean")?)?;
    worst.compare("scaled std", &(&moments.std / scale)?, &(get("logvar")? * 0.5)?.exp()?)?;
    worst.compare("decoded", &codec.decode(&(get(decoded_from)? * scale)?)?, get("decoded")?)?;
    Ok(worst.0)
}

#[test]
fn cases_of_kind_vae() -> Result<()> {
    let dir = parity_dir();
    let path = dir.join("manifest.json");
    let manifest = json(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    let cases = manifest.as_object().context("the manifest is an object")?;
    for (name, case) in cases.iter().filter(|(_, case)| case["kind"] == "vae") {
        let mut tensors = load(dir.join(format!("{name}.safetensors")))?;
        let names: Vec<String> = tensors.keys().filter(|k| k.starts_with("weights.")).cloned().collect();
        let weights: HashMap<String, Tensor> =
            names.iter().map(|k| (k["weights.".len()..].to_owned(), tensors.remove(k).unwrap())).collect();
        let config = KlConfig::from_json(&case["meta"].to_string())?;
        let codec = AutoencoderKl::from_tensors(config, name, weights, DType::F32, &Device::Cpu)?;
        let worst = check_kl(&codec, &tensors, "latent").with_context(|| name.clone())?;
        println!("parity {name} {worst:.2e}");
    }
    Ok(())
}

#[test]
fn small_random_kl() -> Result<()> {
    let folder = fixtures().join("codec_kl");
    let weights = load(folder.join("diffusion_pytorch_model.safetensors"))?;
    let tensors = load(folder.join("expected.safetensors"))?;
    let config = KlConfig::from_json(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let build = |weights| AutoencoderKl::from_tensors(config.clone(), "codec_kl", weights, DType::F32, &Device::Cpu);
    println!("parity codec_kl {:.2e}", check_kl(&build(weights.clone())?, &tensors, "latent")?);

    // The names and shapes of older files.
    let old = weights.into_iter().map(|(name, t)| {
        let renamed = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        let t = match t.dims() {
            &[o, i] => t.reshape((o, i, 1, 1))?,
            _ => t,
        };
        Ok((renamed.iter().fold(name, |name, (new, old)| name.replace(new, old)), t))
    });
    let old = old.collect::<Result<HashMap<_, _>>>()?;
    assert!(old.keys().any(|name| name.contains("proj_attn")));
    println!("parity codec_kl_old_names {:.2e}", check_kl(&build(old)?, &tensors, "latent")?);
    Ok(())
}

#[test]
fn small_random_tiny() -> Result<()> {
    let folder = fixtures().join("codec_tiny");
    let expected = load(folder.join("expected.safetensors"))?;
    let check = |codec: &dyn LatentCodec| -> Result<f64> {
        let mut worst = Worst(0.);
        worst.compare("encoded", &codec.encode(&expected["image"])?.mean, &expected["encoded"])?;
        worst.compare("decoded", &codec.decode(&expected["latents"])?, &expected["decoded"])?;
        Ok(worst.0)
    };
    let codec = open(folder.to_str().context("a name")?, DType::F32, &Device::Cpu)?;
    println!("parity codec_tiny {:.2e}", check(&*codec)?);

    // The original pair of files.
    let weights = load(folder.join("diffusion_pytorch_model.safetensors"))?;
    let original = tempfile::tempdir()?;
    for (side, offset) in [("encoder", 0), ("decoder", 1)] {
        let half: HashMap<String, Tensor> = weights
            .iter()
            .filter_map(|(name, t)| {
                let (layer, rest) = name.strip_prefix(&format!("{side}.layers."))?.split_once('.')?;
                Some((format!("{}.{rest}", layer.parse::<usize>().ok()? + offset), t.clone()))
            })
            .collect();
        candle_core::safetensors::save(&half, original.path().join(format!("tae_{side}.safetensors")))?;
    }
    let codec = open(original.path().to_str().context("a name")?, DType::F32, &Device::Cpu)?;
    println!("parity codec_tiny_original {:.2e}", check(&*codec)?);

    let inferred = TinyConfig::of_tensors(&weights);
    let written = TinyConfig::from_json(&std::fs::read_to_string(folder.join("config.json"))?)?;
    assert_eq!(inferred, written);
    TinyAutoencoder::from_tensors(inferred, "codec_tiny", weights, DType::F64, &Device::Cpu)?;
    Ok(())
}

#[test]
fn taesd_on_photographs() -> Result<()> {
    let Some(folder) = std::env::var_os("FPDM_TAESD_DIR") else {
        println!("skipped: FPDM_TAESD_DIR is not set");
        return Ok(());
    };
    let path = parity_dir().join("taesd_expected.safetensors");
    if !path.is_file() {
        println!("skipped: FPDM_PARITY_DIR has no taesd_expected.safetensors");
        return Ok(());
    }
    let expected = load(path)?;
    let codec = open(folder.to_str().context("a name")?, DType::F32, &Device::Cpu)?;
    let largest = |a: &Tensor, b: &Tensor| -> Result<f32> { Ok((a - b)?.abs()?.max_all()?.to_scalar()?) };
    let latents = largest(&codec.encode(&expected["image"])?.mean, &expected["latents"])?;
    let decoded = largest(&codec.decode(&expected["latents"])?, &expected["decoded"])?;
    println!("parity taesd latents {latents:.2e} decoded {decoded:.2e}");
    ensure!(latents <= 1e-3 && decoded <= 1e-3, "TAESD: latents {latents}, decoded {decoded}");
    let psnr = image::psnr(&expected["image"], &round_trip(&*codec, &expected["image"])?)?;
    println!("parity taesd psnr {psnr:.3} dB");
    ensure!((psnr - 27.75).abs() <= 0.05, "{psnr} dB");
    Ok(())
}
