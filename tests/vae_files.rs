//! From files to codecs: every format, and what is said of bad ones.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::{Which, read_tensors, write_torch};
use fpdm_core::hub::{HubClient, Progress, RemoteFile, Source};
use fpdm_vae::{LatentCodec, Result, open, open_with};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn codec(path: &Path) -> Result<Box<dyn LatentCodec>> {
    open(path.to_str().unwrap(), DType::F32, &Device::Cpu)
}

fn message(path: &Path) -> String {
    match codec(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(e) => e.to_string(),
    }
}

/// Whether two codecs do exactly the same.
fn same(a: &dyn LatentCodec, b: &dyn LatentCodec) -> Result<bool> {
    let x = Tensor::arange(0f32, 3. * 16. * 16., &Device::Cpu)?.sin()?.reshape((1, 3, 16, 16))?;
    let values = |codec: &dyn LatentCodec| -> Result<[Vec<f32>; 2]> {
        let z = codec.encode(&x)?.mean;
        Ok([codec.decode(&z)?.flatten_all()?.to_vec1()?, z.flatten_all()?.to_vec1()?])
    };
    Ok(values(a)? == values(b)?)
}

/// The two original files of a tiny codec, as `{start}encoder{ending}` and so on.
fn write_pair(to: &Path, start: &str, ending: &str) -> Result<()> {
    let weights = read_tensors(folder("codec_tiny").join("diffusion_pytorch_model.safetensors"), Which::Model)?;
    for (side, offset) in [("encoder", 0), ("decoder", 1)] {
        let half: Vec<(String, Tensor)> = weights
            .iter()
            .filter_map(|(name, t)| {
                let (layer, rest) = name.strip_prefix(&format!("{side}.layers."))?.split_once('.')?;
                Some((format!("{}.{rest}", layer.parse::<usize>().ok()? + offset), t.clone()))
            })
            .collect();
        write_torch(to.join(format!("{start}{side}{ending}")), &half)?;
    }
    Ok(())
}

#[test]
fn archives_of_torch_are_codecs() -> Result<()> {
    for name in ["codec_kl", "codec_tiny"] {
        let to = tempfile::tempdir().unwrap();
        let weights = read_tensors(folder(name).join("diffusion_pytorch_model.safetensors"), Which::Model)?;
        let weights: Vec<_> = weights.into_iter().collect();
        std::fs::copy(folder(name).join("config.json"), to.path().join("config.json")).unwrap();
        let path = to.path().join("diffusion_pytorch_model.bin");
        write_torch(&path, &weights)?;
        let expected = codec(&folder(name))?;
        assert!(same(&*codec(to.path())?, &*expected)?, "{name}: the folder");
        assert!(same(&*codec(&path)?, &*expected)?, "{name}: the file");
        // Cut anywhere: an error with the name of the file.
        let whole = std::fs::read(&path).unwrap();
        for end in (0..whole.len()).step_by(whole.len() / 40) {
            std::fs::write(&path, &whole[..end]).unwrap();
            let message = message(to.path());
            assert!(message.contains("diffusion_pytorch_model.bin"), "{end}: {message}");
        }
    }
    Ok(())
}

#[test]
fn original_pairs_are_codecs() -> Result<()> {
    let expected = codec(&folder("codec_tiny"))?;
    let to = tempfile::tempdir().unwrap();
    for ending in [".pth", ".pt", ".bin"] {
        let to = tempfile::tempdir().unwrap();
        write_pair(to.path(), "taesd_", ending)?;
        assert!(same(&*codec(to.path())?, &*expected)?, "{ending}");
    }
    write_pair(to.path(), "taesd_", ".pth")?;
    for half in ["encoder", "decoder"] {
        assert!(same(&*codec(&to.path().join(format!("taesd_{half}.pth")))?, &*expected)?, "{half}");
    }
    // The same codec in another format is no other codec; one of another name is.
    write_pair(to.path(), "taesd_", ".pt")?;
    assert!(same(&*codec(to.path())?, &*expected)?);
    write_pair(to.path(), "taef1_", ".pth")?;
    let said = message(to.path());
    assert!(said.contains("several codecs") && said.contains("taef1_decoder.pth"), "{said}");
    assert!(same(&*codec(&to.path().join("taef1_decoder.pth"))?, &*expected)?);

    let alone = tempfile::tempdir().unwrap();
    write_pair(alone.path(), "", ".pth")?;
    std::fs::write(alone.path().join("encoder.pth"), b"\x80\x02}q\x00.and more of it").unwrap();
    let said = message(alone.path());
    assert!(said.contains("encoder.pth") && said.contains("before version 1.6"), "{said}");
    std::fs::remove_file(alone.path().join("encoder.pth")).unwrap();
    let said = message(alone.path());
    assert!(said.contains("a pair *encoder and *decoder") && said.contains(".pth"), "{said}");
    Ok(())
}

/// A Hub of one repository, which is a folder.
struct Repository(PathBuf);

impl HubClient for Repository {
    fn find(&self, file: RemoteFile, _: &mut dyn FnMut(Progress)) -> Result<Option<PathBuf>> {
        assert_eq!((file.repo, file.revision), ("madebyollin/taesd", "main"));
        Ok(Some(self.0.join(file.path)).filter(|path| path.is_file()))
    }
}

#[test]
fn repositories_are_codecs() -> Result<()> {
    let hub = |folder: &Path, name: &str| -> Result<Box<dyn LatentCodec>> {
        open_with(&Source::parse(name)?, &Repository(folder.to_path_buf()), DType::F32, &Device::Cpu)
    };
    let name = "madebyollin/taesd";
    for codec_name in ["codec_kl", "codec_tiny"] {
        let expected = codec(&folder(codec_name))?;
        assert!(same(&*hub(&folder(codec_name), name)?, &*expected)?, "{codec_name}");
        // A whole pipeline.
        let to = tempfile::tempdir().unwrap();
        std::fs::create_dir(to.path().join("vae")).unwrap();
        for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
            std::fs::copy(folder(codec_name).join(file), to.path().join("vae").join(file)).unwrap();
        }
        assert!(same(&*hub(to.path(), name)?, &*expected)?, "{codec_name} in vae/");
        assert!(same(&*codec(to.path())?, &*expected)?, "{codec_name} in vae/, a folder");
        let file = format!("{name}/vae/diffusion_pytorch_model.safetensors");
        assert!(same(&*hub(to.path(), &file)?, &*expected)?, "{codec_name}, its file");
    }
    let expected = codec(&folder("codec_tiny"))?;
    let to = tempfile::tempdir().unwrap();
    write_pair(to.path(), "taesd_", ".pth")?;
    write_pair(to.path(), "taesd3_", ".pth")?;
    assert!(same(&*hub(to.path(), name)?, &*expected)?);
    assert!(same(&*hub(to.path(), "madebyollin/taesd/taesd3_decoder.pth")?, &*expected)?);
    let said = hub(to.path(), "madebyollin/taesd/taesdxl_decoder.pth").err().unwrap().to_string();
    assert!(said.contains("taesdxl_decoder.pth") && said.contains("404"), "{said}");
    Ok(())
}

fn refused(config: Option<&str>, weights: &HashMap<String, Tensor>) -> String {
    let folder = tempfile::tempdir().unwrap();
    if let Some(config) = config {
        std::fs::write(folder.path().join("config.json"), config).unwrap();
    }
    candle_core::safetensors::save(weights, folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    message(folder.path())
}

#[test]
fn bad_files_are_named() {
    let text = std::fs::read_to_string(folder("codec_kl").join("config.json")).unwrap();
    let path = folder("codec_kl").join("diffusion_pytorch_model.safetensors");
    let mut weights = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    assert!(
        refused(Some(&text.replace("AutoencoderKL", "AsymmetricAutoencoderKL")), &weights)
            .contains("`AsymmetricAutoencoderKL`")
    );
    assert!(refused(Some("{"), &weights).contains("no JSON"));
    assert!(
        refused(Some(r#"{"_class_name": "AutoencoderKL", "norm_num_groups": 7}"#), &weights)
            .contains("norm_num_groups")
    );
    assert!(refused(None, &weights).contains("config.json is missing"));
    assert!(
        refused(None, &HashMap::from([("a".into(), Tensor::new(0f32, &Device::Cpu).unwrap())]))
            .contains("encoder.layers")
    );
    weights.remove("quant_conv.bias");
    weights.insert("decoder.conv_in.bias".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    weights.insert("more".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    let message = refused(Some(&text), &weights);
    for part in ["`quant_conv.bias` [8] is missing", "`decoder.conv_in.bias`: expected [16], got [3]", "`more`"] {
        assert!(message.contains(part), "{message}");
    }
    let empty = tempfile::tempdir().unwrap();
    let message = self::message(empty.path());
    assert!(message.contains("diffusion_pytorch_model.safetensors"), "{message}");
    std::fs::write(empty.path().join("model.safetensors"), b"no tensors").unwrap();
    let message = self::message(empty.path());
    assert!(message.contains("no safetensors"), "{message}");
    assert!(open("no such place", DType::F32, &Device::Cpu).is_err());
}
