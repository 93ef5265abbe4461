//! Numbers of the published PyTorch modules against ours.
//!
//! `FPDM_PARITY_DIR` names a folder with a `manifest.json` (default: `tests/fixtures`); kinds and settings come from
//! the manifest, never from file names. Tolerances on ‖a − b‖ / ‖b‖, f32 on the CPU: 2e-5 forward, 1e-4 gradients.
//! `FPDM_PARITY_DEVICE=cuda` (a build with that feature) takes a GPU, where f32 is held to 1e-4, and
//! `FPDM_PARITY_DTYPE=bf16` a narrower type, held to 2e-2.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use fpdm_core::checkpoint::{Checkpoint, Untold, Which};
use fpdm_core::dit::{Architecture, Config, Dit, Fpdit, Labels};
use fpdm_core::{Budget, ImplicitModel, Picard, solve};
use serde_json::Value;

/// What is computed where, and how near it has to come.
struct Place {
    device: Device,
    dtype: DType,
    forward: f64,
    gradient: f64,
}

fn place() -> &'static Place {
    static PLACE: std::sync::OnceLock<Place> = std::sync::OnceLock::new();
    PLACE.get_or_init(|| {
        let set = |name: &str| std::env::var(name).unwrap_or_default();
        let device = match set("FPDM_PARITY_DEVICE").as_str() {
            "" | "cpu" => Device::Cpu,
            #[cfg(feature = "cuda")]
            "cuda" => fpdm_kernels::cuda::cuda(0, Default::default()).expect("a GPU"),
            other => panic!("FPDM_PARITY_DEVICE: `{other}` is not in this build"),
        };
        let (dtype, forward, gradient) = match (set("FPDM_PARITY_DTYPE").as_str(), device.is_cpu()) {
            ("" | "f32", true) => (DType::F32, 2e-5, 1e-4),
            ("" | "f32", false) => (DType::F32, 1e-4, 1e-4),
            ("bf16", _) => (DType::BF16, 2e-2, 2e-2),
            (other, _) => panic!("FPDM_PARITY_DTYPE: `{other}` is neither f32 nor bf16"),
        };
        Place { device, dtype, forward, gradient }
    })
}

/// A floating point tensor where and as it is computed with.
fn here(t: &Tensor) -> candle_core::Result<Tensor> {
    t.to_dtype(place().dtype)?.to_device(&place().device)
}

struct Case {
    name: String,
    meta: Value,
    dir: PathBuf,
    tensors: HashMap<String, Tensor>,
    worst: f64,
}

impl Case {
    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("{}: the file has no tensor {name}", self.name))
    }

    fn size(&self, field: &str) -> Result<usize> {
        let value = self.meta[field].as_u64().with_context(|| format!("{}: meta has no `{field}`", self.name))?;
        Ok(value as usize)
    }

    fn weights(&self) -> HashMap<String, Tensor> {
        let weights = self.tensors.iter();
        weights.filter_map(|(k, v)| Some((k.strip_prefix("weights.")?.to_owned(), here(v).ok()?))).collect()
    }

    /// Compares ours with the stored tensor and remembers the largest relative error.
    fn check(&mut self, name: &str, ours: &Tensor, tolerance: f64) -> Result<()> {
        let theirs = self.get(name)?.clone();
        self.compare(name, ours, &theirs, tolerance)
    }

    fn compare(&mut self, name: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) -> Result<()> {
        ensure!(ours.dims() == theirs.dims(), "{} {name}: {:?} for {:?}", self.name, ours.dims(), theirs.dims());
        let ours = ours.to_device(&Device::Cpu)?.to_dtype(theirs.dtype())?;
        let error = norm(&(&ours - theirs)?)? / norm(theirs)?;
        ensure!(error <= tolerance, "{} {name}: relative error {error:.2e} over {tolerance:.0e}", self.name);
        self.worst = self.worst.max(error);
        Ok(())
    }

    fn config(&self) -> Result<Config> {
        let size = self.size("input_size")?;
        let dit = self.meta.get("depth").is_some();
        let depth = |field: &str| if dit { Ok(0) } else { self.size(field) };
        let config = Config {
            architecture: if dit { Architecture::Dit } else { Architecture::Fpdm },
            input_size: [size, size],
            patch_size: self.size("patch_size")?,
            in_channels: self.size("in_channels")?,
            hidden_size: self.size("hidden_size")?,
            num_heads: self.size("num_heads")?,
            pre_depth: depth("pre_depth")?,
            group: if dit { 0 } else { 1 },
            post_depth: depth("post_depth")?,
            depth: if dit { self.size("depth")? } else { 0 },
            labels: Labels::Classes(self.size("num_classes")?),
            learn_sigma: self.meta["learn_sigma"].as_bool().unwrap_or(true),
            pre_post_timestep_conditioning: self.meta["pre_post_timestep_conditioning"].as_bool().unwrap_or(false),
            ..Config::fpdm(fpdm_core::dit::Size::S, 2)
        };
        config.check()?;
        Ok(config)
    }
}

fn norm(x: &Tensor) -> Result<f64> {
    Ok(x.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar()?)
}

fn fpdit(case: &Case) -> Result<Fpdit> {
    let vb = VarBuilder::from_tensors(case.weights(), place().dtype, &place().device);
    Ok(Fpdit::new(&case.config()?, vb)?)
}

fn inputs(case: &Case) -> Result<[Tensor; 3]> {
    Ok([here(case.get("x")?)?, case.get("t")?.clone(), case.get("y")?.clone()])
}

/// Every intermediate: embeddings, pre-layers, injection, each iterate, post-layers, output.
fn fpdm_forward(case: &mut Case) -> Result<()> {
    let model = fpdit(case)?;
    let [x, t, y] = inputs(case)?;
    let features = model.features(&x, &t, &y)?;
    case.check("cond_t", &features.cond_t, place().forward)?;
    case.check("cond_y", features.cond_y.as_ref().context("labels")?, place().forward)?;
    case.check("embed", &features.embed, place().forward)?;
    case.check("pre", &features.pre, place().forward)?;
    case.check("injection", &features.injection, place().forward)?;
    let problem = model.problem(&features)?;
    let n = case.size("iterations")?;
    for i in 1..=n {
        let solution = solve(&Picard::default(), &*problem.map, problem.z0.clone(), &mut Budget(i))?;
        case.check(&format!("iterate.{i}"), &solution.z, place().forward)?;
        if i == n {
            case.check("post", &model.post(&solution.z, &features)?, place().forward)?;
            case.check("output", &problem.readout(&solution.z)?, place().forward)?;
        }
    }
    // The position table is computed where no checkpoint brings one.
    let (h, w) = model.config().grid();
    let ours = fpdm_core::dit::position_embedding(h, w, model.config().hidden_size, DType::F32, &Device::Cpu)?;
    case.check("weights.pos_embed", &ours, place().forward)
}

type Variables = Vec<(String, Var)>;

/// Trainable copies of a case's weights, and what a network is built from.
fn variables(case: &Case) -> Result<(Variables, HashMap<String, Tensor>)> {
    let mut vars = Vec::new();
    let mut tensors = HashMap::new();
    for (name, tensor) in case.weights() {
        if name == "pos_embed" {
            tensors.insert(name, tensor);
            continue;
        }
        let var = Var::from_tensor(&tensor)?;
        tensors.insert(name.clone(), var.as_tensor().clone());
        vars.push((name, var));
    }
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    Ok((vars, tensors))
}

fn check_loss(case: &mut Case, output: &Tensor, vars: &[(String, Var)]) -> Result<()> {
    case.check("output", &output.detach(), place().forward)?;
    let loss = (output - here(case.get("target")?)?)?.sqr()?.mean_all()?;
    case.check("loss", &loss.detach(), place().forward)?;
    let grads = loss.backward()?;
    let mut checked = 0;
    for (name, var) in vars {
        let Some(expected) = case.tensors.get(&format!("grads.{name}")).cloned() else { continue };
        let ours = grads.get(var).with_context(|| format!("{name} has no gradient"))?.detach();
        case.compare(&format!("grads.{name}"), &ours, &expected, place().gradient)?;
        checked += 1;
    }
    let expected = case.tensors.keys().filter(|k| k.starts_with("grads.")).count();
    ensure!(checked == expected, "{}: {checked} gradients compared, the file has {expected}", case.name);
    Ok(())
}

fn sjfb_grad(case: &mut Case) -> Result<()> {
    let (vars, tensors) = variables(case)?;
    let model = Fpdit::new(&case.config()?, VarBuilder::from_tensors(tensors, place().dtype, &place().device))?;
    let [x, t, y] = inputs(case)?;
    let problem = model.prepare(&x, &t, &y)?;
    let (n, m) = (case.size("no_grad_iterations")?, case.size("grad_iterations")?);
    let z = solve(&Picard::default(), &*problem.frozen, problem.z0.clone(), &mut Budget(n))?.z;
    ensure!(!z.track_op(), "the iterations without gradient built a graph");
    let z = solve(&Picard::default(), &*problem.map, z, &mut Budget(m))?.z;
    check_loss(case, &problem.readout(&z)?, &vars)
}

fn dit(case: &mut Case) -> Result<()> {
    let (vars, tensors) = variables(case)?;
    let model = Dit::new(&case.config()?, VarBuilder::from_tensors(tensors, place().dtype, &place().device))?;
    let [x, t, y] = inputs(case)?;
    check_loss(case, &model.forward(&x, &t, &y)?, &vars)
}

/// Each solve starts at the last one's solution.
fn reuse(case: &mut Case) -> Result<()> {
    let model = fpdit(case)?;
    let y = case.get("y")?.clone();
    let times = case.meta["timesteps"].as_array().context("timesteps")?.clone();
    let mut last = None;
    for (i, time) in times.iter().enumerate() {
        let x = here(case.get(&format!("x.{i}"))?)?;
        let t = Tensor::full(time.as_i64().context("an integer time")?, x.dim(0)?, &Device::Cpu)?;
        let problem = model.prepare(&x, &t, &y)?;
        let z0 = last.unwrap_or_else(|| problem.z0.clone());
        let z = solve(&Picard::default(), &*problem.map, z0, &mut Budget(case.size("iterations")?))?.z;
        case.check(&format!("solution.{i}"), &z, place().forward)?;
        case.check(&format!("output.{i}"), &problem.readout(&z)?, place().forward)?;
        last = Some(z);
    }
    Ok(())
}

/// Classifier-free guidance as published: on the first channels of the prediction only.
fn cfg(case: &mut Case) -> Result<()> {
    let model = fpdit(case)?;
    let [half, t, y] = inputs(case)?;
    let x = Tensor::cat(&[&half, &half], 0)?;
    let problem = model.prepare(&x, &t, &y)?;
    let z = solve(&Picard::default(), &*problem.map, problem.z0.clone(), &mut Budget(case.size("iterations")?))?.z;
    let out = problem.readout(&z)?;
    let scale = case.meta["cfg_scale"].as_f64().context("cfg_scale")?;
    let guided = case.size("guided_channels")?;
    let (eps, rest) = (out.narrow(1, 0, guided)?, out.narrow(1, guided, out.dim(1)? - guided)?);
    let b = half.dim(0)?;
    let (cond, uncond) = (eps.narrow(0, 0, b)?, eps.narrow(0, b, b)?);
    let eps = (&uncond + ((cond - &uncond)? * scale)?)?;
    let ours = Tensor::cat(&[Tensor::cat(&[&eps, &eps], 0)?, rest], 1)?;
    case.check("output", &ours, place().forward)
}

/// A published training checkpoint, both sets of weights.
fn checkpoint_pt(case: &mut Case) -> Result<()> {
    let path = case.dir.join(format!("{}.pt", case.name));
    let config = case.config()?;
    for (which, name) in [(Which::Model, "output_model"), (Which::Ema, "output_ema")] {
        let checkpoint = Checkpoint::open(&path, which)?;
        let model = Fpdit::new(&config, checkpoint.var_builder(place().dtype, &place().device))?;
        let [x, t, y] = inputs(case)?;
        let problem = model.prepare(&x, &t, &y)?;
        let budget = &mut Budget(case.size("iterations")?);
        let z = solve(&Picard::default(), &*problem.map, problem.z0.clone(), budget)?.z;
        case.check(name, &problem.readout(&z)?, place().forward)?;
    }
    Ok(())
}

/// The diffusers port of DiT, whose weights are stored under its own names.
fn dit_diffusers(case: &mut Case) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&case.weights(), &path)?;
    let checkpoint = Checkpoint::open(&path, Which::Model)?;
    let config = checkpoint.config(&Untold::from_diffusers(&case.meta))?;
    let model = Dit::new(&config, checkpoint.var_builder(place().dtype, &place().device))?;
    let [x, t, y] = inputs(case)?;
    case.check("output", &model.forward(&x, &t, &y)?, place().forward)
}

fn run(name: &str, entry: &Value, dir: &Path) -> Result<Option<f64>> {
    let kind = entry["kind"].as_str().with_context(|| format!("{name} has no kind"))?;
    let body: fn(&mut Case) -> Result<()> = match kind {
        "fpdm_forward" => fpdm_forward,
        "sjfb_grad" => sjfb_grad,
        "dit" => dit,
        "reuse" => reuse,
        "cfg" => cfg,
        "checkpoint_pt" => checkpoint_pt,
        "dit_diffusers" => dit_diffusers,
        _ => return Ok(None),
    };
    let meta = entry["meta"].clone();
    let file = meta["expected"].as_str().map_or_else(|| format!("{name}.safetensors"), str::to_owned);
    let path = dir.join(file);
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).with_context(|| path.display().to_string())?;
    let mut case = Case { name: name.to_owned(), meta, dir: dir.to_owned(), tensors, worst: 0.0 };
    body(&mut case)?;
    Ok(Some(case.worst))
}

/// Python writes `NaN` and `Infinity` into JSON, which JSON does not know: `null` outside strings.
fn strict(text: &str) -> String {
    let (mut out, mut word, mut quoted, mut escaped) = (String::new(), String::new(), false, false);
    for c in text.chars() {
        if !quoted && (c.is_ascii_alphanumeric() || "+-.".contains(c)) {
            word.push(c);
            continue;
        }
        out += if ["NaN", "Infinity", "-Infinity"].contains(&word.as_str()) { "null" } else { &word };
        word.clear();
        out.push(c);
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    out + &word
}

#[test]
fn published_numbers() -> Result<()> {
    let dir = std::env::var_os("FPDM_PARITY_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")), PathBuf::from);
    let manifest = dir.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    let manifest: serde_json::Map<String, Value> = serde_json::from_str(&strict(&text))?;
    let (mut ran, mut failed) = (0, Vec::new());
    for (name, entry) in &manifest {
        let kind = entry["kind"].as_str().unwrap_or("?");
        match run(name, entry, &dir) {
            Ok(Some(worst)) => {
                ran += 1;
                println!("parity {name} {kind} {worst:.2e}");
            }
            Ok(None) => println!("parity {name} {kind} skipped: no such kind here"),
            Err(e) => {
                println!("parity {name} {kind} FAILED");
                failed.push(format!("{e:#}"));
            }
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    ensure!(ran > 0, "{} names no case of a known kind", dir.display());
    Ok(())
}
