//! Feature networks against plain PyTorch (`tests/fixtures/features.py`), and against timm where its weights are.
//!
//! `FPDM_EFFICIENTNET` names the weights of timm's `tf_efficientnet_lite0`, and `FPDM_PARITY_DIR` then a folder with
//! `efficientnet_lite0_expected.safetensors`: pictures in [0, 1] of the network's size and timm's pooled features.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use fpdm_core::checkpoint::{Which, read_tensors};
use fpdm_eval::{EfficientNetLite0, FeatureExtractor, Features, Filter, InceptionV3, Result, open, resize};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/features").join(name)
}

fn load(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn network(features: Features, file: &str) -> Box<dyn FeatureExtractor> {
    open(features, fixture(file).to_str().unwrap(), &Device::Cpu).unwrap().0
}

/// The largest difference over the largest number.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let most = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    let (got, want) = (got.to_dtype(DType::F64).unwrap(), want.to_dtype(DType::F64).unwrap());
    most((got - &want).unwrap()) / most(want)
}

#[test]
fn small_networks_equal_pytorch() -> Result<()> {
    for (kind, weights, name, width) in [
        (Features::EfficientNetLite0, "efficientnet_lite0.safetensors", "efficientnet_lite0", 160),
        (Features::InceptionV3, "inception.pth", "inception", 128),
    ] {
        let network = network(kind, weights);
        let expected = load(fixture(&format!("{name}_expected.safetensors")));
        let error = distance(&network.embed(&expected["x"])?, &expected["features"]);
        println!("{name}: {error:.2e}");
        assert!(error < 1e-5, "{name}: {error:.2e}");
        assert_eq!(network.width(), width);
        // Any picture becomes one that the network takes, and a batch is its pictures.
        let x = expected["x"].narrow(2, 3, 40)?.narrow(3, 0, 31)?;
        let both = network.features(&x)?;
        assert_eq!(both.dims(), [2, width]);
        assert!(distance(&network.features(&x.narrow(0, 1, 1)?)?, &both.narrow(0, 1, 1)?) < 1e-5);
    }
    Ok(())
}

/// More pictures than one slice has.
#[test]
fn large_batches_are_sliced() -> Result<()> {
    let network = network(Features::EfficientNetLite0, "efficientnet_lite0.safetensors");
    let x = load(fixture("efficientnet_lite0_expected.safetensors"))["x"].clone();
    let batch = Tensor::cat(&[&x, &x, &x, &x, &x], 0)?;
    let expected = network.embed(&x)?;
    let got = network.embed(&batch)?;
    for i in 0..5 {
        assert!(distance(&got.narrow(0, 2 * i, 2)?, &expected) < 1e-5);
    }
    Ok(())
}

#[test]
fn pictures_are_resized_as_pillow_and_pytorch_do() -> Result<()> {
    let stored = load(fixture("resized.safetensors"));
    let mut compared = 0;
    for (name, want) in &stored {
        let Some((by, _)) = name.split_once('.') else { continue };
        let size = [want.dim(2)?, want.dim(3)?];
        let (filter, tolerance) = match by {
            // Pillow computes in f32 here.
            "pillow" => (Filter::Bicubic, 5e-7),
            "bicubic" => (Filter::Bicubic, 1e-12),
            _ => (Filter::Bilinear, 1e-12),
        };
        let x = stored["x"].to_dtype(DType::F64)?;
        let error = distance(&resize(&x, size, filter)?, want);
        assert!(error < tolerance, "{name}: {error:.2e}");
        assert!(distance(&resize(&stored["x"], size, filter)?, want) < 1e-6);
        compared += 1;
    }
    assert_eq!(compared, 9);
    Ok(())
}

#[test]
fn pixels_get_gradients() -> Result<()> {
    let tensors = load(fixture("efficientnet_lite0.safetensors"));
    let network = EfficientNetLite0::from_tensors("fixture", tensors, &Device::Cpu)?;
    let x = Var::from_tensor(&load(fixture("efficientnet_lite0_expected.safetensors"))["x"].narrow(0, 0, 1)?)?;
    let loss = |x: &Tensor| -> Result<Tensor> { Ok(network.embed(x)?.sqr()?.sum_all()?) };
    let gradient = loss(&x)?.backward()?.get(&x).expect("a gradient").detach();
    // Along the gradient the loss grows by its square.
    let step = 1e-3 / gradient.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt() as f64;
    let at = |t: f64| -> Result<f32> { Ok(loss(&(x.as_detached_tensor() + (&gradient * t)?)?)?.to_scalar()?) };
    let slope = (at(step)? - at(-step)?) as f64 / (2. * step);
    let expected = gradient.sqr()?.sum_all()?.to_scalar::<f32>()? as f64;
    assert!((slope / expected - 1.).abs() < 0.05, "{slope} for {expected}");
    Ok(())
}

#[test]
fn bad_weights_are_named() -> Result<()> {
    let refused = |tensors| EfficientNetLite0::from_tensors("here", tensors, &Device::Cpu).unwrap_err().to_string();
    let good = load(fixture("efficientnet_lite0.safetensors"));
    let mut bad = good.clone();
    bad.remove("blocks.1.0.conv_dw.weight");
    bad.insert("bn2.bias".into(), Tensor::zeros(3, DType::F32, &Device::Cpu)?);
    bad.insert("blocks.0.0.bn1.bias".into(), Tensor::full(f32::NAN, 4, &Device::Cpu)?);
    bad.insert("more".into(), Tensor::zeros(3, DType::F32, &Device::Cpu)?);
    // The classifier and the counts of batches are known, and not needed.
    bad.insert("classifier.weight".into(), Tensor::zeros(3, DType::F32, &Device::Cpu)?);
    bad.insert("bn1.num_batches_tracked".into(), Tensor::new(3i64, &Device::Cpu)?);
    let message = refused(bad);
    for part in [
        "here: ",
        "`blocks.1.0.conv_dw.weight` [12, 1, 3, 3] is missing",
        "`bn2.bias`: expected [160], got [3]",
        "`blocks.0.0.bn1.bias` holds numbers that are not finite",
        "`more` has no place",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains("classifier") && !message.contains("num_batches_tracked"), "{message}");
    let inception = read_tensors(fixture("inception.pth"), Which::Model)?;
    let message = refused(inception.clone());
    assert!(message.contains("`conv_stem.weight` [32, 3, 3, 3] is missing"), "{message}");
    assert!(InceptionV3::from_tensors("there", inception, &Device::Cpu).is_ok());
    let message = InceptionV3::from_tensors("there", good, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("`Mixed_7c.branch_pool.conv.weight` [192, 2048, 1, 1] is missing"), "{message}");
    assert!(open(Features::InceptionV3, "no such place", &Device::Cpu).is_err());
    Ok(())
}

#[test]
fn bad_pictures_are_named() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for (kind, weights) in
        [(Features::EfficientNetLite0, "efficientnet_lite0.safetensors"), (Features::InceptionV3, "inception.pth")]
    {
        let network = network(kind, weights);
        for shape in [&[1, 4, 80, 80][..], &[0, 3, 80, 80], &[3, 80, 80], &[1, 3, 0, 80]] {
            let message = network.features(&zeros(shape)).unwrap_err().to_string();
            assert!(message.contains("pixels: expected (B, 3, H, W)"), "{message}");
            assert!(network.embed(&zeros(shape)).is_err());
        }
    }
    let small = network(Features::InceptionV3, "inception.pth").embed(&zeros(&[1, 3, 74, 80])).unwrap_err().to_string();
    assert!(small.contains("at least 75"), "{small}");
    let oblong = network(Features::EfficientNetLite0, "efficientnet_lite0.safetensors").embed(&zeros(&[1, 3, 8, 9]));
    assert!(oblong.unwrap_err().to_string().contains("square"));
    assert!(resize(&zeros(&[1, 3, 4, 4]), [0, 4], Filter::Bicubic).unwrap_err().to_string().contains("0x4"));
    assert!(resize(&zeros(&[3, 4, 4]), [4, 4], Filter::Bicubic).is_err());
}

/// The published weights, if they are here.
#[test]
fn efficientnet_equals_timm() -> Result<()> {
    let (Ok(weights), Some(folder)) = (std::env::var("FPDM_EFFICIENTNET"), std::env::var_os("FPDM_PARITY_DIR")) else {
        println!("skipped: FPDM_EFFICIENTNET or FPDM_PARITY_DIR is not set; the small network is compared in any case");
        return Ok(());
    };
    let (network, _) = open(Features::EfficientNetLite0, &weights, &Device::Cpu)?;
    let expected = load(PathBuf::from(folder).join("efficientnet_lite0_expected.safetensors"));
    let pixels = expected["image01"].affine(2., -1.)?;
    assert!(distance(&network.prepare(&pixels)?, &expected["normalised"]) < 1e-6);
    let error = distance(&network.features(&pixels)?, &expected["pooled"]);
    println!("parity efficientnet_lite0 {error:.2e}");
    assert!(error < 1e-4, "{error:.2e}");
    Ok(())
}
