//! Training against numbers from PyTorch: gradients, the optimiser, the terms of the loss.
//!
//! `FPDM_PARITY_DIR` names another folder with a `manifest.json`; kinds and settings come from the manifest.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use fpdm_core::dit::{Config, Fpdit, Labels, Size};
use fpdm_core::rng::{Stream, stream};
use fpdm_core::{Flow, ImplicitModel, Level, NoiseSchedule, Parameterization, Posterior, Result, Vp};
use fpdm_train::{
    AdamW, AdamWConfig, Draw, Ema, GradientEstimator, Gradients, Memory, MultiStepJfb, Objective, Parameters, Times,
    Weighting, clip_grad_norm,
};
use serde_json::Value;

const CPU: Device = Device::Cpu;

type Tensors = HashMap<String, Tensor>;

/// Python writes infinities into JSON as bare words, which no JSON parser takes: they become null.
fn without_bare_words(text: &str) -> String {
    let (mut out, mut rest, mut quoted) = (String::new(), text, false);
    while let Some(c) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|w| !quoted && rest.starts_with(w));
        let taken = match (word, c) {
            (Some(word), _) => {
                out.push_str("null");
                word.len()
            }
            (None, '\\') if quoted => {
                let len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..len]);
                len
            }
            (None, c) => {
                quoted ^= c == '"';
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    out
}

fn cases(kind: &str) -> Vec<(String, Value, Tensors)> {
    let folder = std::env::var_os("FPDM_PARITY_DIR").map_or("tests/fixtures".into(), PathBuf::from);
    let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let Value::Object(entries) = serde_json::from_str(&without_bare_words(&text)).unwrap() else {
        panic!("the manifest is no object")
    };
    let found: Vec<_> = entries
        .into_iter()
        .filter(|(_, entry)| entry["kind"] == kind)
        .map(|(name, entry)| {
            let tensors = candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &CPU).unwrap();
            (name, entry["meta"].clone(), tensors)
        })
        .collect();
    // Another folder need not have every kind; ours does.
    let own = std::env::var_os("FPDM_PARITY_DIR").is_none();
    assert!(!found.is_empty() || !own, "no case of kind {kind} in {}", folder.display());
    found
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| -> f64 {
        t.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    let b = b.to_dtype(DType::F64).unwrap();
    norm(&(a.to_dtype(DType::F64).unwrap() - &b).unwrap()) / norm(&b).max(1e-30)
}

#[test]
fn sjfb_grad() -> Result<()> {
    for (name, meta, tensors) in cases("sjfb_grad") {
        let number = |field: &str| meta[field].as_u64().unwrap() as usize;
        let config = Config {
            input_size: [number("input_size"); 2],
            patch_size: number("patch_size"),
            in_channels: number("in_channels"),
            hidden_size: number("hidden_size"),
            num_heads: number("num_heads"),
            labels: Labels::Classes(number("num_classes")),
            pre_depth: number("pre_depth"),
            post_depth: number("post_depth"),
            pre_post_timestep_conditioning: meta["pre_post_timestep_conditioning"].as_bool().unwrap(),
            ..Config::fpdm(Size::S, 2)
        };
        let variables = VarMap::new();
        let parameters = config.parameters();
        for parameter in &parameters {
            let value = &tensors[&format!("weights.{}", parameter.name)];
            variables.data().lock().unwrap().insert(parameter.name.clone(), Var::from_tensor(value)?);
        }
        let model = Fpdit::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &CPU))?;
        let flat = Parameters::new(&variables)?;
        let mut worst = [0f64; 3];
        for memory in [Memory::Store, Memory::Recompute(2)] {
            let y = tensors["y"].to_dtype(DType::U32)?;
            let problem = model.prepare(&tensors["x"], &tensors["t"].to_dtype(DType::F32)?, &y)?;
            let (without_grad, with_grad) = (number("no_grad_iterations"), number("grad_iterations"));
            let estimator = MultiStepJfb { without_grad, with_grad, memory, ..Default::default() };
            let found = estimator.estimate(&problem, &mut stream(0, Stream::Solver, 0))?;
            let z = Var::from_tensor(found.solution())?;
            let output = problem.readout(&z)?;
            worst[0] = worst[0].max(relative(&output, &tensors["output"]));
            let loss = (output - &tensors["target"])?.sqr()?.mean_all()?;
            worst[1] = worst[1].max(relative(&loss, &tensors["loss"]));
            let mut grads = loss.backward()?;
            let cotangent = grads.remove(&z).unwrap().detach();
            let mut sums = Gradients::new(&flat)?;
            sums.add(grads, 1.)?;
            found.pullback_solution(&cotangent, &mut |grads| sums.add(grads, 1.))?;
            for (parameter, grad) in flat.named(&sums.flat()?)? {
                let want = &tensors[&format!("grads.{parameter}")];
                let error = relative(&grad, want);
                assert!(error < 1e-4, "{name}: {parameter}: {error:e}");
                worst[2] = worst[2].max(error);
            }
        }
        println!("{name}: output {:.1e}, loss {:.1e}, gradients {:.1e}", worst[0], worst[1], worst[2]);
        assert!(worst[0] < 2e-5 && worst[1] < 2e-5, "{name}: {worst:?}");
    }
    Ok(())
}

#[test]
fn adamw_ema() -> Result<()> {
    for (name, meta, tensors) in cases("adamw_ema") {
        let number = |field: &str| meta[field].as_f64().unwrap();
        let config = AdamWConfig {
            beta1: meta["betas"][0].as_f64().unwrap(),
            beta2: meta["betas"][1].as_f64().unwrap(),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
        };
        let p0 = tensors["p0"].flatten_all()?;
        let mut adam = AdamW::new(config, p0.clone())?;
        let mut ema = Ema::new(number("ema_decay"), &p0)?;
        let mut worst = 0f64;
        for step in 0..number("steps") as usize {
            adam.step(&tensors["grads"].get(step)?.flatten_all()?, number("lr"))?;
            ema.update(&adam.master)?;
            worst = worst.max(relative(&adam.master, &tensors["p"].get(step)?.flatten_all()?));
            worst = worst.max(relative(&ema.average, &tensors["ema"].get(step)?.flatten_all()?));
        }
        worst = worst.max(relative(&adam.exp_avg, &tensors["exp_avg"].flatten_all()?));
        worst = worst.max(relative(&adam.exp_avg_sq, &tensors["exp_avg_sq"].flatten_all()?));
        let (clipped, norm) = clip_grad_norm(&tensors["clip.grad"].flatten_all()?, Some(number("clip_max_norm")))?;
        worst = worst.max(relative(&clipped, &tensors["clip.out"].flatten_all()?));
        worst = worst.max(relative(&norm, &tensors["clip.norm"]));
        println!("{name}: {worst:.1e}");
        assert!(worst < 1e-6, "{name}: {worst:e}");
    }
    Ok(())
}

/// The network of the cases: `tanh(x·(½ + a))·(1 − 0.3a)` and, for the variance, `sin(x + a)`, with `a = t/1000`.
fn closed_form(x: &Tensor, t: &Tensor) -> Result<(Tensor, Tensor)> {
    let a = (t.to_dtype(x.dtype())? / 1000.)?.reshape((x.dim(0)?, 1, 1, 1))?;
    let main = x.broadcast_mul(&(&a + 0.5)?)?.tanh()?.broadcast_mul(&a.affine(-0.3, 1.)?)?;
    Ok((main, x.broadcast_add(&a)?.sin()?))
}

/// The published bound of one sample, an element at a time in its order of operations, each rounded by `r`. `rows` are
/// x0, xt, and what the network says: about the mean, and about the variance.
fn published_bound(r: fn(f64) -> f64, v: bool, level: Level, p: &Posterior, rows: [&[f64]; 4]) -> f64 {
    let Level { t, alpha, sigma } = level;
    let (a, b) = if v { (alpha, sigma) } else { (1. / alpha, sigma / alpha) };
    let [a, b, low, high, of_x0, of_xt] = [a, b, p.log_variance, p.beta.ln(), p.mean_x0, p.mean_xt].map(r);
    let cdf = |x: f64| {
        let inner = r(x + r(r(0.044715) * r(r(x * x) * x)));
        r(0.5 * r(1. + r(r(r((2. / std::f64::consts::PI).sqrt()) * inner).tanh())))
    };
    let log = |p: f64| r(p.max(1e-12).ln());
    let term = |i: usize| {
        let [x0, xt, said, share] = rows.map(|row| row[i]);
        let share = r(r(share + 1.) / 2.);
        let log_variance = r(r(share * high) + r(r(1. - share) * low));
        let mean = |x0: f64| r(r(of_x0 * x0) + r(of_xt * xt));
        let said_mean = mean(r(r(a * xt) - r(b * said)));
        if t == 0. {
            let (centered, inverse) = (r(x0 - said_mean), r(r(-0.5 * log_variance).exp()));
            let [above, below] = [1. / 255., -1. / 255.].map(|bin| cdf(r(inverse * r(centered + r(bin)))));
            match x0 {
                x0 if x0 < -0.999 => -log(above),
                x0 if x0 > 0.999 => -log(r(1. - below)),
                _ => -log(r(above - below)),
            }
        } else {
            let of_variance = r(r(r(log_variance - 1.) - low) + r(r(low - log_variance).exp()));
            let square = r(r(mean(x0) - said_mean).powi(2));
            r(0.5 * r(of_variance + r(square * r((-log_variance).exp()))))
        }
    };
    (0..rows[0].len()).map(term).sum::<f64>() / rows[0].len() as f64 / std::f64::consts::LN_2
}

#[test]
fn diffusion_training_terms() -> Result<()> {
    for (name, meta, tensors) in cases("diffusion") {
        let set = |field: &str| meta[field].as_bool().unwrap_or(false);
        let flow = set("use_flow");
        let mut vp = if meta["noise_schedule"] == "squaredcos_cap_v2" { Vp::cosine(1000)? } else { Vp::default() };
        if set("use_zero_terminal_snr") {
            vp = vp.zero_terminal_snr()?;
        }
        let objective = if flow {
            Objective::flow()
        } else {
            Objective {
                schedule: Arc::new(vp.clone()),
                parameterization: if set("predict_v") { Parameterization::V } else { Parameterization::Eps },
                weighting: if set("predict_v") { Weighting::P2 { k: 1., gamma: 0.5 } } else { Weighting::Uniform },
                variance: Some(vp.clone()),
                times: Times::Whole,
                label_dropout: 0.,
            }
        };
        objective.check()?;
        let times = tensors["t"].to_vec1::<i64>()?;
        let level = |t: &i64| if flow { Flow::default().level(*t as f64) } else { vp.level(*t as f64) };
        let levels = times.iter().map(level).collect::<Result<Vec<_>>>()?;
        let y = Tensor::zeros(times.len(), DType::U32, &CPU)?;
        let draw = |dtype: DType| -> Result<Draw> {
            let [x0, noise] = ["x0", "noise"].map(|name| tensors[name].to_dtype(dtype));
            objective.noisy(levels.clone(), x0?, noise?, y.clone())
        };
        let (draw, narrow) = (draw(DType::F64)?, draw(DType::F32)?);
        let mut worst = vec![("q_sample", relative(&draw.xt, &tensors["q_sample"]))];
        let (main, variance) = closed_form(&draw.xt, &draw.t)?;
        let output = if flow { main } else { Tensor::cat(&[main, variance], 1)? };
        let losses = objective.losses(&draw, &output)?;
        match &losses.bound {
            Some(bound) => {
                worst.push(("mse", relative(&losses.error, &tensors["train.mse"])));
                // The reference computes in f32, where its logarithms of variances, about -10, cancel to a small
                // difference: it is 4e-6 away from its own formula. That formula, rounded as it rounds, gives the
                // reference; without rounding it gives our bound.
                let published = |r: fn(f64) -> f64, draw: &Draw| -> Result<Tensor> {
                    let (main, variance) = closed_form(&draw.xt, &draw.t)?;
                    let rows = [&draw.x0, &draw.xt, &main, &variance]
                        .map(|t| t.to_dtype(DType::F64)?.flatten_from(1)?.to_vec2::<f64>());
                    let [x0, xt, main, variance] = rows;
                    let (x0, xt, main, variance) = (x0?, xt?, main?, variance?);
                    let v = objective.parameterization == Parameterization::V;
                    let of = |(i, level): (usize, &Level)| {
                        let rows = [&x0[i][..], &xt[i], &main[i], &variance[i]];
                        published_bound(r, v, *level, &vp.posteriors()[level.t as usize], rows)
                    };
                    Ok(Tensor::new(draw.levels.iter().enumerate().map(of).collect::<Vec<f64>>(), &CPU)?)
                };
                let (exact, rounded) = (published(|x| x, &draw)?, published(|x| f64::from(x as f32), &narrow)?);
                assert!(relative(bound, &exact) < 1e-10, "{name}: {}", relative(bound, &exact));
                worst.push(("vb", relative(&rounded, &tensors["train.vb"])));
                worst.push(("loss", relative(&(&losses.error + rounded)?, &tensors["train.loss"])));
                // Ours in f32 does not cancel. At t = 0 there is the rounding of x0 itself, in standard deviations of
                // 0.01, which nobody can mend.
                let (main, variance) = closed_form(&narrow.xt, &narrow.t)?;
                let ours = objective.losses(&narrow, &Tensor::cat(&[main, variance], 1)?)?.bound.unwrap();
                for (i, level) in narrow.levels.iter().enumerate() {
                    let error = relative(&ours.get(i)?, &exact.get(i)?);
                    println!("{name}: vb in f32 at t = {}: {error:.1e}", level.t);
                    assert!(error < if level.t == 0. { 1e-5 } else { 1e-6 }, "{name}: t = {}: {error:e}", level.t);
                }
            }
            None => worst.push(("loss", relative(&losses.error, &tensors["train.loss"]))),
        }
        println!("{name}: {worst:?}");
        assert!(worst.iter().all(|(_, error)| *error < 1e-6), "{name}: {worst:?}");
    }
    Ok(())
}
