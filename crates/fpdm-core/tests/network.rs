//! The two networks: counts, gradients, the hoisted map against the plain one, shapes, bad input.

use candle_core::{D, DType, Device, Result as Candle, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use fpdm_core::dit::{Architecture, Config, Dit, Fpdit, Init, Labels, Size, init, perturb_gates, position_embedding};
use fpdm_core::rng::{Stream, stream};
use fpdm_core::{Error, ImplicitModel, Problem, Result};
use rand::Rng;

const CPU: Device = Device::Cpu;

fn tiny() -> Config {
    Config {
        input_size: [4, 6],
        in_channels: 3,
        hidden_size: 16,
        num_heads: 2,
        labels: Labels::Classes(5),
        ..Config::fpdm(Size::S, 2)
    }
}

fn tiny_dit() -> Config {
    Config { architecture: Architecture::Dit, pre_depth: 0, group: 0, post_depth: 0, depth: 2, ..tiny() }
}

/// Variants that between them turn every switch.
fn implicit_configs() -> Vec<Config> {
    vec![
        tiny(),
        Config { group: 3, pre_depth: 2, post_depth: 0, pre_post_timestep_conditioning: true, ..tiny() },
        Config { pre_depth: 0, post_depth: 2, learn_sigma: false, labels: Labels::Vector(7), ..tiny() },
        Config { labels: Labels::None, pre_post_timestep_conditioning: true, patch_size: 1, ..tiny() },
        Config { mlp_ratio: 2.5, num_heads: 4, input_size: [8, 4], patch_size: 4, ..tiny() },
    ]
}

fn explicit_configs() -> Vec<Config> {
    vec![
        tiny_dit(),
        Config { block_embedders: true, timestep_frequency_shift: 1.0, mlp_norm_eps: 1e-5, ..tiny_dit() },
        Config { labels: Labels::None, learn_sigma: false, ..tiny_dit() },
    ]
}

fn random(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let rng = &mut stream(seed, Stream::Noise, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap().to_dtype(dtype).unwrap()
}

fn inputs(config: &Config, batch: usize, dtype: DType) -> (Tensor, Tensor, Tensor) {
    let [h, w] = config.input_size;
    let x = random(&[batch, config.in_channels, h, w], dtype, 1);
    let t = Tensor::arange(0u32, batch as u32, &CPU).unwrap().affine(37.0, 5.0).unwrap();
    let y = match config.labels {
        Labels::Vector(n) => random(&[batch, n], dtype, 2),
        Labels::Classes(n) => {
            Tensor::from_vec((0..batch).map(|i| (i % (n + 1)) as u32).collect(), batch, &CPU).unwrap()
        }
        Labels::None => Tensor::zeros(batch, DType::U32, &CPU).unwrap(),
    };
    (x, t, y)
}

/// A network whose gates are open.
fn opened(config: &Config, dtype: DType) -> Result<VarMap> {
    let variables = init(config, 7, dtype, &CPU)?;
    perturb_gates(config, &variables, 8, 0.3)?;
    Ok(variables)
}

fn solve_with(problem: &Problem, frozen: usize, tracked: usize) -> Result<Tensor> {
    let mut z = problem.z0.clone();
    for _ in 0..frozen {
        z = problem.frozen.apply(&z)?;
    }
    for _ in 0..tracked {
        z = problem.map.apply(&z)?;
    }
    problem.readout(&z)
}

fn largest(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).and_then(|x| x.abs()?.max_all()?.to_scalar()).unwrap()
}

#[test]
fn parameter_counts_are_the_published_ones() {
    let fpdm = [(Size::XL, 86_500_256), (Size::L, 68_500_512), (Size::B, 38_792_480), (Size::S, 9_959_072)];
    let dit = [(Size::XL, 674_834_720), (Size::L, 457_840_672), (Size::B, 130_315_808), (Size::S, 32_865_056)];
    for (size, count) in fpdm {
        assert_eq!(Config::fpdm(size, 2).parameter_count(), count, "FPDM-{size:?}/2");
    }
    for (size, count) in dit {
        assert_eq!(Config::dit(size, 2).parameter_count(), count, "DiT-{size:?}/2");
    }
    let unconditional = Config { labels: Labels::Classes(1), ..Config::fpdm(Size::XL, 2) };
    assert_eq!(unconditional.parameter_count(), 85_349_408);
    for (depth, count) in [(0, 38_689_952), (2, 134_310_560), (4, 229_931_168)] {
        let config = Config { pre_depth: depth, post_depth: depth, ..Config::fpdm(Size::XL, 2) };
        assert_eq!(config.parameter_count(), count, "{depth} pre and post");
    }
    for size in [Size::S, Size::B, Size::L, Size::XL] {
        for patch in [2, 4, 8] {
            assert!(Config::fpdm(size, patch).check().is_ok() && Config::dit(size, patch).check().is_ok());
        }
    }
}

#[test]
fn a_built_network_has_as_many_parameters_as_it_says() -> Result<()> {
    for config in implicit_configs().iter().chain(&explicit_configs()) {
        let variables = init(config, 0, DType::F32, &CPU)?;
        let built: usize = variables.all_vars().iter().map(|v| v.elem_count()).sum();
        assert_eq!(built, config.parameter_count());
    }
    Ok(())
}

fn assert_all_gradients(loss: &Tensor, variables: &VarMap, what: &str) -> Result<()> {
    let gradients = loss.backward()?;
    for (name, var) in variables.data().lock().unwrap().iter() {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
        assert_eq!(gradient.dims(), var.dims());
        assert!(largest(&gradient.detach()) > 1e-10, "{what}: the gradient of {name} is zero");
    }
    Ok(())
}

#[test]
fn every_parameter_of_the_implicit_network_gets_a_gradient() -> Result<()> {
    for (i, config) in implicit_configs().iter().enumerate() {
        let variables = opened(config, DType::F32)?;
        let model = Fpdit::new(config, VarBuilder::from_varmap(&variables, DType::F32, &CPU))?;
        let (x, t, y) = inputs(config, 3, DType::F32);
        let out = solve_with(&model.prepare(&x, &t, &y)?, 2, 2)?;
        assert_all_gradients(&out.sqr()?.mean_all()?, &variables, &format!("config {i}"))?;
    }
    Ok(())
}

#[test]
fn every_parameter_of_the_baseline_gets_a_gradient() -> Result<()> {
    for (i, config) in explicit_configs().iter().enumerate() {
        let variables = opened(config, DType::F32)?;
        let model = Dit::new(config, VarBuilder::from_varmap(&variables, DType::F32, &CPU))?;
        let (x, t, y) = inputs(config, 3, DType::F32);
        assert_all_gradients(&model.forward(&x, &t, &y)?.sqr()?.mean_all()?, &variables, &format!("config {i}"))?;
    }
    Ok(())
}

#[test]
fn gradients_agree_with_finite_differences() -> Result<()> {
    let config = Config { hidden_size: 8, input_size: [2, 4], ..tiny() };
    let variables = opened(&config, DType::F64)?;
    let (x, t, y) = inputs(&config, 2, DType::F64);
    let loss = |variables: &VarMap| -> Result<Tensor> {
        let model = Fpdit::new(&config, VarBuilder::from_varmap(variables, DType::F64, &CPU))?;
        let problem = model.prepare(&x, &t, &y)?;
        // The published gradient cuts the starting point, so the difference quotient must not move it either.
        let mut z = random(problem.z0.dims(), DType::F64, 3);
        for _ in 0..3 {
            z = problem.map.apply(&z)?;
        }
        Ok(problem.readout(&z)?.sqr()?.sum_all()?)
    };
    let gradients = loss(&variables)?.backward()?;
    let vars: Vec<(String, Var)> =
        variables.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    for (name, var) in vars {
        let direction = random(var.dims(), DType::F64, 4);
        let analytic = (gradients.get(&var).unwrap().detach() * &direction)?.sum_all()?.to_scalar::<f64>()?;
        let start = var.as_tensor().copy()?.detach();
        let at = |h: f64| -> Result<f64> {
            var.set(&(&start + (&direction * h)?)?)?;
            Ok(loss(&variables)?.to_scalar::<f64>()?)
        };
        let h = 1e-5;
        let numeric = (at(h)? - at(-h)?) / (2.0 * h);
        at(0.0)?;
        let error = (analytic - numeric).abs() / (analytic.abs() + numeric.abs() + 1e-6);
        assert!(error < 1e-6, "{name}: {analytic} by backward, {numeric} by differences");
    }
    Ok(())
}

/// The map as the paper writes it: everything inside the loop, nothing hoisted, plain tensor operations.
fn plain_map(variables: &VarMap, config: &Config, z: &Tensor, injection: &Tensor, c: &Tensor) -> Candle<Tensor> {
    let data = variables.data().lock().unwrap();
    let linear = |x: &Tensor, name: &str| -> Candle<Tensor> {
        let (w, b) = (&data[&format!("{name}.weight")], &data[&format!("{name}.bias")]);
        x.broadcast_matmul(&w.t()?)?.broadcast_add(b)
    };
    let gelu = |x: &Tensor| -> Candle<Tensor> {
        let inner = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
        (x * 0.5)? * (inner.tanh()? + 1.0)?
    };
    let norm = |x: &Tensor| -> Candle<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        centred.broadcast_div(&(variance + 1e-6)?.sqrt()?)
    };
    let h = Tensor::cat(&[z, injection], 2)?;
    let h = gelu(&linear(&h, "block_fixed_point_projection_fc1")?)?;
    let mut x = linear(&h, "block_fixed_point_projection_fc2")?;
    let (b, t, d) = x.dims3()?;
    let heads = config.num_heads;
    for name in config.implicit_block_names() {
        let m = linear(&c.silu()?, &format!("{name}.adaLN_modulation.1"))?.unsqueeze(1)?.chunk(6, 2)?;
        let modulate = |x: &Tensor, shift: &Tensor, scale: &Tensor| -> Candle<Tensor> {
            norm(x)?.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
        };
        let qkv = linear(&modulate(&x, &m[0], &m[1])?, &format!("{name}.attn.qkv"))?;
        let qkv = qkv.reshape((b, t, 3, heads, d / heads))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
        let scores = (q.matmul(&k.t()?)? / ((d / heads) as f64).sqrt())?;
        let a = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        let a = linear(&a.transpose(1, 2)?.reshape((b, t, d))?, &format!("{name}.attn.proj"))?;
        x = (x + a.broadcast_mul(&m[2])?)?;
        let h = gelu(&linear(&modulate(&x, &m[3], &m[4])?, &format!("{name}.mlp.fc1"))?)?;
        x = (&x + linear(&h, &format!("{name}.mlp.fc2"))?.broadcast_mul(&m[5])?)?;
    }
    Ok(x)
}

#[test]
fn the_hoisted_map_equals_the_plain_one() -> Result<()> {
    for config in [tiny(), Config { group: 2, ..tiny() }] {
        let variables = opened(&config, DType::F64)?;
        let model = Fpdit::new(&config, VarBuilder::from_varmap(&variables, DType::F64, &CPU))?;
        let (x, t, y) = inputs(&config, 2, DType::F64);
        let features = model.features(&x, &t, &y)?;
        let c = (&features.cond_t + features.cond_y.as_ref().unwrap())?;
        let problem = model.problem(&features)?;
        let (mut ours, mut plain) = (problem.z0.clone(), problem.z0.clone());
        for _ in 0..4 {
            let frozen = problem.frozen.apply(&ours)?;
            assert!(!frozen.track_op(), "the frozen map built a graph");
            ours = problem.map.apply(&ours)?;
            assert!(ours.track_op(), "the tracked map built none");
            assert!(largest(&(&frozen - &ours)?) < 1e-12);
            plain = plain_map(&variables, &config, &plain, &features.injection, &c)?;
        }
        assert!(largest(&(&ours - &plain)?) < 1e-10 * largest(&plain).max(1.0));

        let (ours, plain) = (ours.sqr()?.sum_all()?.backward()?, plain.sqr()?.sum_all()?.backward()?);
        for (name, var) in variables.data().lock().unwrap().iter() {
            let Some(expected) = plain.get(var) else { continue };
            let error = largest(&(ours.get(var).unwrap() - expected)?.detach());
            assert!(error <= 1e-9 * largest(&expected.detach()).max(1.0), "{name}: gradients differ by {error}");
        }
    }
    Ok(())
}

#[test]
fn a_frozen_map_sees_later_updates() -> Result<()> {
    let config = tiny();
    let variables = opened(&config, DType::F32)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &CPU))?;
    let (x, t, y) = inputs(&config, 1, DType::F32);
    let problem = model.prepare(&x, &t, &y)?;
    let before = problem.frozen.apply(&problem.z0)?;
    let data = variables.data().lock().unwrap();
    let bias = &data["block_fixed_point.mlp.fc2.bias"];
    bias.set(&(bias.as_tensor() + 1.0)?)?;
    drop(data);
    assert!(largest(&(problem.frozen.apply(&problem.z0)? - before)?) > 1e-3);
    Ok(())
}

#[test]
fn a_fresh_network_is_the_published_start() -> Result<()> {
    let config = tiny();
    let variables = init(&config, 1, DType::F32, &CPU)?;
    let again = init(&config, 1, DType::F64, &CPU)?;
    let other = init(&config, 2, DType::F32, &CPU)?;
    let get = |m: &VarMap, name: &str| m.data().lock().unwrap()[name].as_tensor().to_dtype(DType::F64).unwrap();
    for p in config.parameters() {
        let values = get(&variables, &p.name);
        assert!(largest(&(&values - get(&again, &p.name))?) < 1e-7, "{}: depends on the dtype", p.name);
        match p.init {
            Init::Zero => assert_eq!(largest(&values), 0.0, "{}", p.name),
            Init::Xavier { fan_in, fan_out } => {
                let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
                assert!(largest(&values) <= bound && largest(&values) > 0.8 * bound, "{}", p.name);
                assert!(largest(&(values - get(&other, &p.name))?) > 0.0, "{}: does not depend on the seed", p.name);
            }
            Init::Normal(stdev) => {
                let rms = values.sqr()?.mean_all()?.sqrt()?.to_scalar::<f64>()?;
                assert!((rms / stdev - 1.0).abs() < 0.35, "{}: deviation {rms}", p.name);
            }
        }
    }
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &CPU))?;
    let (x, t, y) = inputs(&config, 2, DType::F32);
    let features = model.features(&x, &t, &y)?;
    assert_eq!(largest(&(&features.pre - &features.embed)?), 0.0, "a block with closed gates is the identity");
    assert_eq!(largest(&solve_with(&model.problem(&features)?, 0, 2)?), 0.0, "the last projection starts at zero");
    Ok(())
}

#[test]
fn shapes_follow_the_config() -> Result<()> {
    for config in implicit_configs() {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let variables = opened(&config, dtype)?;
            let model = Fpdit::new(&config, VarBuilder::from_varmap(&variables, dtype, &CPU))?;
            let (x, t, y) = inputs(&config, 2, dtype);
            let problem = model.prepare(&x, &t, &y)?;
            assert_eq!(problem.z0.dims(), [2, config.tokens(), config.hidden_size]);
            let out = solve_with(&problem, 1, 0)?;
            assert_eq!(out.dims(), [2, config.out_channels(), config.input_size[0], config.input_size[1]]);
            assert_eq!(out.dtype(), dtype);
        }
    }
    Ok(())
}

#[test]
fn narrow_dtypes_stay_near_f32() -> Result<()> {
    let config = tiny();
    let wide = opened(&config, DType::F32)?;
    let (x, t, y) = inputs(&config, 2, DType::F32);
    let run = |variables: &VarMap, dtype: DType| -> Result<Tensor> {
        let model = Fpdit::new(&config, VarBuilder::from_varmap(variables, dtype, &CPU))?;
        Ok(solve_with(&model.prepare(&x.to_dtype(dtype)?, &t, &y)?, 3, 0)?.to_dtype(DType::F32)?)
    };
    let expected = run(&wide, DType::F32)?;
    for (dtype, tolerance) in [(DType::BF16, 5e-2), (DType::F16, 1e-2)] {
        let error = largest(&(run(&opened(&config, dtype)?, dtype)? - &expected)?) / largest(&expected);
        assert!(error < tolerance, "{dtype:?}: {error}");
    }
    Ok(())
}

#[test]
fn patches_are_cut_and_pasted_in_place() -> Result<()> {
    // With the embedding of one pixel a token at a time, moving the image by a patch moves the tokens by one.
    let config = Config { input_size: [4, 6], ..tiny() };
    let variables = opened(&config, DType::F64)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&variables, DType::F64, &CPU))?;
    let (x, t, y) = inputs(&config, 1, DType::F64);
    let positions = position_embedding(2, 3, config.hidden_size, DType::F64, &CPU)?;
    let tokens = |x: &Tensor| -> Result<Tensor> { Ok((model.features(x, &t, &y)?.embed - &positions)?) };
    let moved = Tensor::cat(&[x.narrow(3, 2, 4)?, x.narrow(3, 0, 2)?], 3)?;
    let (a, b) = (tokens(&x)?.reshape((2, 3, 16))?, tokens(&moved)?.reshape((2, 3, 16))?);
    assert!(largest(&(a.narrow(1, 1, 2)? - b.narrow(1, 0, 2)?)?) < 1e-12);
    Ok(())
}

fn config_error(config: Config, field: &str) {
    match config.check() {
        Err(Error::Config { field: named, why }) => {
            assert!(named.contains(field), "{field} expected, {named} named: {why}")
        }
        other => panic!("{field}: {other:?}"),
    }
}

#[test]
fn bad_configs_name_the_field() {
    config_error(Config { num_heads: 3, ..tiny() }, "num_heads");
    config_error(Config { num_heads: 0, ..tiny() }, "num_heads");
    config_error(Config { patch_size: 4, ..tiny() }, "input_size[1]");
    config_error(Config { patch_size: 0, ..tiny() }, "patch_size");
    config_error(Config { hidden_size: 18, ..tiny() }, "hidden_size");
    config_error(Config { mlp_ratio: f64::NAN, ..tiny() }, "mlp_ratio");
    config_error(Config { group: 0, ..tiny() }, "group");
    config_error(Config { depth: 3, ..tiny() }, "depth");
    config_error(Config { pre_depth: 1, ..tiny_dit() }, "pre_depth");
    config_error(Config { labels: Labels::Classes(0), ..tiny() }, "labels");
    config_error(Config { labels: Labels::None, ..tiny() }, "labels");
    config_error(Config { block_embedders: true, ..tiny() }, "block_embedders");
    config_error(Config { hidden_size: usize::MAX, ..tiny() }, "hidden_size");
    let error = Config::from_json(r#"{"hidden_sise": 4}"#).unwrap_err().to_string();
    assert!(error.contains("hidden_sise") && error.contains("hidden_size"), "{error}");
    assert!(Config::from_json(r#"{"architecture": "unet"}"#).unwrap_err().to_string().contains("fpdm"));
    let config = Config { labels: Labels::Vector(3), ..tiny() };
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
}

#[test]
fn bad_inputs_are_refused_with_names() -> Result<()> {
    let config = tiny();
    let variables = opened(&config, DType::F32)?;
    let vb = || VarBuilder::from_varmap(&variables, DType::F32, &CPU);
    let model = Fpdit::new(&config, vb())?;
    let (x, t, y) = inputs(&config, 2, DType::F32);
    let refuse = |x: &Tensor, t: &Tensor, y: &Tensor, words: &[&str]| {
        let error = model.prepare(x, t, y).err().expect("an error").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refuse(&x.narrow(3, 0, 4)?, &t, &y, &["latents", "[B, 3, 4, 6]", "[2, 3, 4, 4]"]);
    refuse(&x.get(0)?, &t, &y, &["latents"]);
    refuse(&x.narrow(0, 0, 0)?, &t.narrow(0, 0, 0)?, &y.narrow(0, 0, 0)?, &["latents"]);
    refuse(&x.to_dtype(DType::F64)?, &t, &y, &["dtype", "F32", "F64"]);
    refuse(&x, &t.narrow(0, 0, 1)?, &y, &["times", "[2]", "[1]"]);
    refuse(&x, &t, &y.narrow(0, 0, 1)?, &["labels", "[2]", "[1]"]);
    refuse(&x, &t, &Tensor::new(&[0u32, 6], &CPU)?, &["labels", "6", "0 to 4"]);
    refuse(&x, &t, &Tensor::new(&[0i64, -1], &CPU)?, &["labels", "-1"]);
    refuse(&x, &t, &Tensor::new(&[0f32, 1.], &CPU)?, &["labels", "integer"]);
    assert!(model.prepare(&x, &t, &Tensor::new(&[5i64, 0], &CPU)?).is_ok(), "5 is the null class");

    let wider = Config { hidden_size: 20, ..config.clone() };
    let Err(Error::Weights { problems, .. }) = Fpdit::new(&wider, vb()) else { panic!("misshaped weights") };
    let differing = wider.parameters().iter().zip(config.parameters()).filter(|(a, b)| a.shape != b.shape).count();
    assert_eq!(problems.len(), differing, "all at once: {problems:?}");
    let deeper = VarBuilder::from_tensors(Default::default(), DType::F32, &CPU);
    let Err(Error::Weights { problems, .. }) = Fpdit::new(&config, deeper) else { panic!("missing weights") };
    assert_eq!(problems.len(), config.parameters().len());
    assert!(Fpdit::new(&tiny_dit(), vb()).is_err() && Dit::new(&config, vb()).is_err());
    Ok(())
}

/// The parts of a network are the whole, whatever the labels' type and place of times; and what they are given can be
/// overwritten in place.
#[test]
fn a_network_in_parts_is_the_network() -> Result<()> {
    let bits = |t: &Tensor| -> Candle<Vec<f64>> { t.to_dtype(DType::F64)?.flatten_all()?.to_vec1() };
    for config in implicit_configs() {
        let model = Fpdit::new(&config, fpdm_core::params::frozen(&opened(&config, DType::F32)?)?)?;
        let staged = model.staged().expect("an implicit network comes in parts");
        let (x, t, y) = inputs(&config, 2, DType::F32);
        let given = staged.inputs(&x, &t, &y)?;
        let state = staged.state(&given)?;
        let problem = staged.assemble(&state)?;
        let check = |x: &Tensor, t: &Tensor, y: &Tensor| -> Result<()> {
            let whole = model.prepare(x, t, y)?;
            assert_eq!(bits(&problem.z0)?, bits(&whole.z0)?);
            let (got, expected) = (problem.frozen.apply(&whole.z0)?, whole.frozen.apply(&whole.z0)?);
            assert_eq!(bits(&got)?, bits(&expected)?);
            assert_eq!(bits(&problem.readout(&got)?)?, bits(&whole.readout(&got)?)?);
            Ok(())
        };
        check(&x, &t, &y)?;
        check(&x, &t.to_dtype(DType::F64)?, &y)?;
        let overwrite = |all: &[Tensor], with: &[Tensor]| -> Candle<()> {
            let flat = |t: &Tensor| t.contiguous()?.flatten_all();
            all.iter().zip(with).try_for_each(|(to, from)| flat(to)?.slice_set(&flat(from)?.copy()?, 0, 0))
        };
        let (x, t) = ((&x * 0.5)?, (&t + 100.)?);
        let y = match config.labels {
            Labels::Classes(n) => Tensor::new(&[n as i64, 1], &CPU)?,
            _ => y.affine(1., 0.25)?,
        };
        overwrite(&state, &staged.state(&staged.inputs(&x, &t, &y)?)?)?;
        check(&x, &t, &y)?;
        assert!(staged.assemble(&state[1..]).is_err() && staged.state(&given[..1]).is_err());
    }
    Ok(())
}

#[test]
fn networks_cross_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Fpdit>();
    shared::<Dit>();
    shared::<Problem>();
    shared::<Error>();
}
