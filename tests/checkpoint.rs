//! Weight files of every layout: what is read, what is refused, what is written.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Init, VarBuilder, VarMap};
use fpdm_core::checkpoint::{Checkpoint, Labels, Layout, Which, write_safetensors, write_torch};
use fpdm_core::{Error, Result, params};
use proptest::prelude::*;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIM: usize = 8;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

type Named = Vec<(String, Tensor)>;

fn random(rng: &mut ChaCha8Rng, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn network(blocks: &[&str], extra: &[(&str, &[usize])]) -> Named {
    let d = DIM;
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("pos_embed".into(), vec![1, 16, d]),
        ("x_embedder.proj.weight".into(), vec![d, 4, 2, 2]),
        ("x_embedder.proj.bias".into(), vec![d]),
        ("t_embedder.mlp.0.weight".into(), vec![d, 256]),
        ("t_embedder.mlp.0.bias".into(), vec![d]),
        ("t_embedder.mlp.2.weight".into(), vec![d, d]),
        ("t_embedder.mlp.2.bias".into(), vec![d]),
        ("y_embedder.embedding_table.weight".into(), vec![11, d]),
        ("final_layer.linear.weight".into(), vec![32, d]),
        ("final_layer.linear.bias".into(), vec![32]),
        ("final_layer.adaLN_modulation.1.weight".into(), vec![2 * d, d]),
        ("final_layer.adaLN_modulation.1.bias".into(), vec![2 * d]),
    ];
    for block in blocks {
        for (module, rows, columns) in [
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("mlp.fc1", 4 * d, d),
            ("mlp.fc2", d, 4 * d),
            ("adaLN_modulation.1", 6 * d, d),
        ] {
            shapes.push((format!("{block}.{module}.weight"), vec![rows, columns]));
            shapes.push((format!("{block}.{module}.bias"), vec![rows]));
        }
    }
    shapes.extend(extra.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())));
    shapes.sort();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    shapes.into_iter().map(|(name, shape)| (name, random(&mut rng, &shape))).collect()
}

fn dit() -> Named {
    network(&["blocks.0", "blocks.1", "blocks.10"], &[])
}

fn fpdm() -> Named {
    let d = DIM;
    network(
        &["blocks_pre.0", "blocks_pre.1", "block_fixed_point", "blocks_post.0"],
        &[
            ("block_pre_projection.weight", &[d, d]),
            ("block_pre_projection.bias", &[d]),
            ("block_fixed_point_projection_fc1.weight", &[2 * d, 2 * d]),
            ("block_fixed_point_projection_fc1.bias", &[2 * d]),
            ("block_fixed_point_projection_fc2.weight", &[d, 2 * d]),
            ("block_fixed_point_projection_fc2.bias", &[d]),
        ],
    )
}

fn shapes(tensors: &Named) -> Vec<(String, Vec<usize>)> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

fn assert_same(checkpoint: &Checkpoint, tensors: &Named) {
    checkpoint.check(&shapes(tensors)).unwrap();
    for (name, tensor) in tensors {
        let got = checkpoint.tensor(name, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(got.dims(), tensor.dims(), "{name}");
        assert_eq!(values(&got), values(tensor), "{name}");
    }
}

fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(path, Which::Ema)
}

/// The text of an error that names `path`.
fn refused<T: std::fmt::Debug>(result: Result<T>, path: &Path) -> String {
    let text = result.unwrap_err().to_string();
    assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "{text}");
    text
}

#[test]
fn the_published_trainer_s_checkpoint_opens() {
    let path = fixture("train_checkpoint.pt");
    let ema = open(&path).unwrap();
    let model = Checkpoint::open(&path, Which::Model).unwrap();
    assert_eq!((ema.layout(), model.layout()), (Layout::Fpdm, Layout::Fpdm));
    assert_eq!(ema.names().len(), 48);
    assert_eq!(ema.shapes(), model.shapes());
    assert_eq!(ema.shapes()["blocks_post.0.attn.qkv.weight"], [144, 48]);
    let name = "block_fixed_point_projection_fc1.weight";
    let [a, b] = [&ema, &model].map(|c| values(&c.tensor(name, DType::F32, &Device::Cpu).unwrap()));
    assert_ne!(a, b);
    ema.check_finite().unwrap();
    let hints = ema.hints().unwrap();
    assert_eq!((hints.hidden_size, hints.patch_size, hints.in_channels), (48, 2, 4));
    assert_eq!((hints.pre_depth, hints.group, hints.post_depth, hints.depth), (1, 1, 1, 0));
    assert_eq!((hints.input_size, hints.labels), (Some([8, 8]), Labels::Classes(10)));
    assert!(hints.implicit && hints.learn_sigma && hints.mlp_ratio == 4.0 && hints.num_heads.is_none());
}

#[test]
fn every_container_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for (layout, tensors) in [(Layout::Fpdm, fpdm()), (Layout::Dit, dit())] {
        let whole = folder.path().join("whole.safetensors");
        write_safetensors(&whole, &tensors).unwrap();
        let torch = folder.path().join("torch.pt");
        write_torch(&torch, &tensors).unwrap();
        let (first, second) = tensors.split_at(tensors.len() / 2);
        write_safetensors(folder.path().join("s-1.safetensors"), first).unwrap();
        write_safetensors(folder.path().join("s-2.safetensors"), second).unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        let map: serde_json::Map<String, serde_json::Value> = first
            .iter()
            .map(|(name, _)| (name.clone(), "s-1.safetensors".into()))
            .chain(second.iter().map(|(name, _)| (name.clone(), "s-2.safetensors".into())))
            .collect();
        std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
        for path in [whole, torch, index, folder.path().to_path_buf()] {
            let checkpoint = open(&path).unwrap();
            assert_eq!(checkpoint.layout(), layout, "{}", path.display());
            assert_same(&checkpoint, &tensors);
        }
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
    paths.iter().for_each(|path| write_safetensors(path, &dit()).unwrap());
    let text = refused(Checkpoint::from_files(&paths, Which::Ema), &paths[1]);
    assert!(text.contains("is also in"), "{text}");
}

#[test]
fn wrappers_are_taken_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrapped.safetensors");
    let wrapped: Named = fpdm().into_iter().map(|(name, t)| (format!("module._orig_mod.{name}"), t)).collect();
    write_safetensors(&path, &wrapped).unwrap();
    assert_same(&open(&path).unwrap(), &fpdm());
    let mixed: Named = fpdm()
        .into_iter()
        .map(|(name, t)| (format!("weights.{name}"), t))
        .chain([("x".to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap())])
        .collect();
    write_safetensors(&path, &mixed).unwrap();
    assert!(refused(open(&path), &path).contains("layout not recognised"));
    assert_same(&Checkpoint::from_files_below(&[&path], Which::Ema, "weights.").unwrap(), &fpdm());
}

#[test]
fn diffusers_names_are_read_as_ours() {
    let path = fixture("dit_diffusers_layout.safetensors");
    let checkpoint = Checkpoint::from_files_below(&[&path], Which::Ema, "weights.").unwrap();
    assert_eq!(checkpoint.layout(), Layout::DiffusersDit);
    let mut hints = checkpoint.hints().unwrap();
    assert!(hints.block_embedders && !hints.implicit);
    let raw = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    for leaf in ["weight", "bias"] {
        let parts = ["to_q", "to_k", "to_v"].map(|p| &raw[&format!("weights.transformer_blocks.1.attn1.{p}.{leaf}")]);
        let qkv = checkpoint.tensor(&format!("blocks.1.attn.qkv.{leaf}"), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(values(&qkv), values(&Tensor::cat(&parts, 0).unwrap()));
    }
    let table = checkpoint.tensor("blocks.1.y_embedder.embedding_table.weight", DType::F32, &Device::Cpu).unwrap();
    let theirs = &raw["weights.transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"];
    assert_eq!(values(&table), values(theirs));

    let config = std::fs::read_to_string(fixture("dit_diffusers_layout.config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    hints.read_diffusers(&config);
    let ours = hints.config_json().unwrap();
    assert_eq!(ours["input_size"], serde_json::json!([8, 8]));
    assert_eq!((&ours["num_heads"], &ours["depth"]), (&4.into(), &2.into()));
    assert_eq!((&ours["timestep_frequency_shift"], &ours["mlp_norm_eps"]), (&1.0.into(), &1e-5.into()));
    let theirs = hints.diffusers_json().unwrap();
    for (key, value) in config.as_object().unwrap().iter().filter(|(key, _)| !key.starts_with('_')) {
        assert_eq!(&theirs[key], value, "{key}");
    }
    // Back: every tensor of the file, bit for bit.
    let back = checkpoint.tensors(Layout::DiffusersDit, DType::F32).unwrap();
    assert_eq!(back.len(), raw.keys().filter(|name| name.starts_with("weights.")).count());
    for (name, tensor) in back {
        assert_eq!(values(&tensor), values(&raw[&format!("weights.{name}")]), "{name}");
    }
}

#[test]
fn dit_and_diffusers_convert_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours.safetensors");
    write_safetensors(&ours, &dit()).unwrap();
    let theirs = folder.path().join("theirs.safetensors");
    let tensors = open(&ours).unwrap().tensors(Layout::DiffusersDit, DType::F32);
    // Depth 3, but numbered 0, 1, 10: not a network.
    assert!(tensors.is_err(), "block numbers with a gap");
    let tensors = network(&["blocks.0", "blocks.1"], &[]);
    write_safetensors(&ours, &tensors).unwrap();
    write_safetensors(&theirs, &open(&ours).unwrap().tensors(Layout::DiffusersDit, DType::F32).unwrap()).unwrap();
    let back = open(&theirs).unwrap();
    assert_eq!(back.layout(), Layout::DiffusersDit);
    assert!(!back.hints().unwrap().block_embedders, "the copies become one again");
    let without: Named = tensors.into_iter().filter(|(name, _)| name != "pos_embed").collect();
    assert_same(&back, &without);
    write_safetensors(&ours, &fpdm()).unwrap();
    let error = open(&ours).unwrap().tensors(Layout::DiffusersDit, DType::F32).unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error}");
}

#[test]
fn a_diffusers_file_with_foreign_tensors_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours.safetensors");
    write_safetensors(&ours, &network(&["blocks.0"], &[])).unwrap();
    let mut tensors = open(&ours).unwrap().tensors(Layout::DiffusersDit, DType::F32).unwrap();
    tensors.retain(|(name, _)| !name.ends_with("to_k.weight"));
    tensors.push(("caption.weight".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap()));
    write_safetensors(&ours, &tensors).unwrap();
    let text = refused(open(&ours), &ours);
    assert!(["caption.weight", "to_q.weight", "to_v.weight"].iter().all(|name| text.contains(name)), "{text}");
}

#[test]
fn all_problems_are_listed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write_safetensors(&path, &fpdm()).unwrap();
    let mut expected = shapes(&fpdm());
    expected.retain(|(name, _)| name != "block_pre_projection.bias" && name != "pos_embed");
    expected.push(("blocks_post.1.attn.qkv.bias".into(), vec![24]));
    expected.iter_mut().filter(|(name, _)| name == "block_pre_projection.weight").for_each(|(_, s)| *s = vec![3, 3]);
    let Error::Weights { problems, .. } = open(&path).unwrap().check(&expected).unwrap_err() else { panic!() };
    assert_eq!(problems.len(), 3, "{problems:?}");
    for text in [
        "block_pre_projection.weight: expected shape [3, 3], got [8, 8]",
        "blocks_post.1.attn.qkv.bias is missing",
        "block_pre_projection.bias [8] is not part of the model",
    ] {
        assert!(problems.iter().any(|p| p.starts_with(text)), "{text}: {problems:?}");
    }
}

#[test]
fn what_is_not_finite_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut tensors = fpdm();
    let bias = Tensor::new(&[0f32, f32::NAN, 1.0, f32::INFINITY, 0.0, 0.0, 0.0, 0.0], &Device::Cpu).unwrap();
    tensors.iter_mut().filter(|(name, _)| name == "x_embedder.proj.bias").for_each(|(_, t)| *t = bias.clone());
    write_safetensors(&path, &tensors).unwrap();
    let text = refused(open(&path).unwrap().check_finite(), &path);
    assert!(text.contains("x_embedder.proj.bias: 2 elements"), "{text}");
}

#[test]
fn weights_are_cast_on_load() {
    let folder = tempfile::tempdir().unwrap();
    for stored in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        let tensors: Named = fpdm().into_iter().map(|(n, t)| (n, t.to_dtype(stored).unwrap())).collect();
        let [st, pt] = ["x.safetensors", "x.pt"].map(|name| folder.path().join(name));
        write_safetensors(&st, &tensors).unwrap();
        write_torch(&pt, &tensors).unwrap();
        for path in [st, pt] {
            let checkpoint = open(&path).unwrap();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let vb = checkpoint.var_builder(dtype, &Device::Cpu).pp("block_fixed_point").pp("attn.proj");
                let got = vb.get((DIM, DIM), "weight").unwrap();
                let (_, want) = tensors.iter().find(|(n, _)| n == "block_fixed_point.attn.proj.weight").unwrap();
                assert_eq!(got.dtype(), dtype);
                assert_eq!(values(&got), values(&want.to_dtype(dtype).unwrap()));
                assert!(vb.contains_tensor("bias") && !vb.contains_tensor("scale"));
                let error = vb.get((DIM, DIM + 1), "weight").unwrap_err().to_string();
                assert!(error.contains("block_fixed_point.attn.proj.weight"), "{error}");
                assert!(vb.get(DIM, "scale").is_err());
            }
        }
    }
}

#[test]
fn shapes_without_elements_and_scalars_survive() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = fpdm();
    tensors.push(("block_fixed_point.empty".into(), Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap()));
    tensors.push(("block_fixed_point.scalar".into(), Tensor::new(5f32, &Device::Cpu).unwrap()));
    let transposed = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap().t().unwrap();
    tensors.push(("block_fixed_point.transposed".into(), transposed));
    for name in ["x.safetensors", "x.pt"] {
        let path = folder.path().join(name);
        if name.ends_with("pt") { write_torch(&path, &tensors) } else { write_safetensors(&path, &tensors) }.unwrap();
        assert_same(&open(&path).unwrap(), &tensors);
    }
}

#[test]
fn files_that_are_something_else_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    let long = (100u64 << 30).to_le_bytes();
    for (bytes, word) in [
        (&b""[..], "no safetensors"),
        (b"hello, this is no weight file", "no safetensors"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9", "before version 1.6"),
        (b"PK\x03\x04 and nothing more", "broken archive"),
        (&long, "no safetensors"),
        (b"\x02\0\0\0\0\0\0\0{}", "layout not recognised"),
        (b"\x10\0\0\0\0\0\0\0{\"a\": [[[[[[[[[[", "no safetensors"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let text = refused(open(&path), &path);
        assert!(text.contains(word), "{text}");
    }
    assert!(matches!(open(&folder.path().join("absent")), Err(Error::Io { .. })));
}

#[test]
fn lying_safetensors_headers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lies.safetensors");
    for header in [
        // Overlap, hole, too short, too long, overflow, another size than the shape.
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}"#,
        r#"{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#,
        r#"{"a":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#,
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 16]);
        std::fs::write(&path, bytes).unwrap();
        assert!(refused(open(&path), &path).contains("no safetensors"), "{header}");
    }
}

/// Opens and reads everything; an error is as good as success, a panic is not.
fn try_all(path: &Path) -> Result<()> {
    for which in [Which::Ema, Which::Model] {
        let checkpoint = Checkpoint::open(path, which)?;
        let _ = checkpoint.hints();
        let _ = checkpoint.check_finite();
        for name in checkpoint.names() {
            checkpoint.tensor(name, DType::F32, &Device::Cpu)?;
        }
    }
    Ok(())
}

#[test]
fn truncated_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = fpdm();
    let path = folder.path().join("cut");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for torch in [false, true] {
        if torch { write_torch(&path, &tensors) } else { write_safetensors(&path, &tensors) }.unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let random = (0..200).map(|_| rng.random_range(0..bytes.len()));
        for len in (0..64).chain(random).chain(bytes.len() - 64..bytes.len()) {
            std::fs::write(&path, &bytes[..len]).unwrap();
            refused(open(&path), &path);
        }
    }
}

#[test]
fn damaged_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = network(&["block_fixed_point"], &[]);
    let path = folder.path().join("damaged");
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for torch in [false, true] {
        if torch { write_torch(&path, &tensors) } else { write_safetensors(&path, &tensors) }.unwrap();
        let whole = std::fs::read(&path).unwrap();
        // The header, the pickle and the directory are where structure is.
        let structure: Vec<usize> = (0..4096).chain(whole.len() - 4096..whole.len()).collect();
        for _ in 0..600 {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = structure[rng.random_range(0..structure.len())];
                bytes[at] = if rng.random() { rng.next_u32() as u8 } else { [0, 0xff, b'R', b'9'][at % 4] };
            }
            std::fs::write(&path, &bytes).unwrap();
            let _ = try_all(&path);
        }
    }
}

#[test]
fn changed_elements_of_an_archive_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flipped.pt");
    let (name, tensor) = ("block_fixed_point.x".to_owned(), Tensor::full(1.5f32, 1000, &Device::Cpu).unwrap());
    write_torch(&path, &[(name.clone(), tensor)]).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let pattern = 1.5f32.to_le_bytes().repeat(2);
    let at = bytes.windows(8).position(|w| w == pattern).unwrap();
    bytes[at + 400] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let text = refused(open(&path).unwrap().tensor(&name, DType::F32, &Device::Cpu), &path);
    assert!(text.contains("checksum"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_header_is_survived(header in "\\PC{0,80}", tail in proptest::collection::vec(any::<u8>(), 0..40)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&tail);
        std::fs::write(&path, bytes).unwrap();
        prop_assert!(try_all(&path).is_err());
    }
}

fn varmap(names: &[(&str, &[usize])], dtype: DType) -> VarMap {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, dtype, &Device::Cpu);
    for (name, shape) in names {
        vb.get_with_hints(*shape, name, Init::Const(1.0)).unwrap();
    }
    vars
}

#[test]
fn a_frozen_view_sees_updates_and_records_nothing() {
    let vars = varmap(&[("b.weight", &[2, 2]), ("a", &[3])], DType::F32);
    assert_eq!(params::names(&vars), ["a", "b.weight"]);
    let frozen = params::frozen(&vars).unwrap().get((2, 2), "b.weight").unwrap();
    let var: Var = vars.data().lock().unwrap()["b.weight"].clone();
    var.set(&Tensor::full(5f32, (2, 2), &Device::Cpu).unwrap()).unwrap();
    assert_eq!(values(&frozen), [5.0; 4]);
    assert!(!(&frozen * 2.0).unwrap().track_op());
    assert!((var.as_tensor() * 2.0).unwrap().track_op());
    let mixed = varmap(&[("a", &[1])], DType::F32);
    let half = Var::from_tensor(&Tensor::zeros(1, DType::F16, &Device::Cpu).unwrap()).unwrap();
    mixed.data().lock().unwrap().insert("b".into(), half);
    assert!(matches!(params::frozen(&mixed), Err(Error::Shape { .. })));
}

#[test]
fn variables_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vars.safetensors");
    let vars = varmap(&[("a", &[3]), ("b", &[2, 2])], DType::F32);
    let value = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
    vars.data().lock().unwrap()["a"].set(&value).unwrap();
    params::save(&vars, &path).unwrap();
    let first = std::fs::read(&path).unwrap();
    params::save(&vars, &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "the same bytes every time");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    let other = varmap(&[("a", &[3]), ("b", &[2, 2])], DType::BF16);
    params::load(&other, &path).unwrap();
    let a = other.data().lock().unwrap()["a"].clone();
    assert_eq!((a.dtype(), values(&a)), (DType::BF16, vec![1.0, 2.0, 3.0]));

    let wrong = varmap(&[("a", &[4]), ("c", &[1])], DType::F32);
    let Error::Weights { problems, .. } = params::load(&wrong, &path).unwrap_err() else { panic!() };
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(wrong.data().lock().unwrap().values().all(|v| values(v).iter().all(|&v| v == 1.0)));
    let nowhere = folder.path().join("no/folder/x.safetensors");
    assert!(matches!(params::save(&vars, nowhere), Err(Error::Io { .. })));
}

#[test]
fn variables_are_loaded_from_any_layout() {
    let tensors = fpdm();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    write_torch(&path, &tensors).unwrap();
    let listed = shapes(&tensors);
    // The network does not train its position embedding.
    let entries: Vec<(&str, &[usize])> =
        listed.iter().filter(|(n, _)| n != "pos_embed").map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let vars = varmap(&entries, DType::F32);
    params::load_checkpoint(&vars, &open(&path).unwrap()).unwrap();
    for (name, tensor) in tensors.iter().filter(|(n, _)| n != "pos_embed") {
        assert_eq!(values(&vars.data().lock().unwrap()[name]), values(tensor));
    }
}
