//! Reference cases: a folder of safetensors files and a manifest that says what they are.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

/// One case of the manifest.
pub(crate) struct Case {
    /// Its name, for messages.
    pub(crate) name: String,
    /// Its settings.
    pub(crate) meta: Value,
    tensors: HashMap<String, Tensor>,
}

impl Case {
    /// A tensor, in its stored dtype.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name)).clone()
    }

    /// A tensor in f64.
    pub(crate) fn f64(&self, name: &str) -> Tensor {
        self.get(name).to_dtype(DType::F64).unwrap()
    }

    /// All numbers of a tensor.
    pub(crate) fn numbers(&self, name: &str) -> Vec<f64> {
        self.f64(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensors whose names begin so, without the beginning.
    pub(crate) fn below(&self, prefix: &str) -> HashMap<String, Tensor> {
        self.tensors.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()))).collect()
    }

    /// A whole number of the settings.
    pub(crate) fn count(&self, key: &str) -> usize {
        self.meta[key].as_u64().unwrap_or_else(|| panic!("{}: no number {key}", self.name)) as usize
    }
}

/// All cases of a kind in the folder `FPDM_PARITY_DIR`, by default the fixtures beside this test.
pub(crate) fn cases(kind: &str) -> Vec<Case> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let other = std::env::var_os("FPDM_PARITY_DIR").map(PathBuf::from);
    let folder = other.clone().unwrap_or(own);
    let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let all: Value = serde_json::from_str(&without_bare_numbers(&text)).unwrap();
    let mut cases: Vec<Case> = Vec::new();
    for (name, case) in all.as_object().unwrap() {
        if case["kind"] == kind {
            let file = folder.join(format!("{name}.safetensors"));
            let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
            cases.push(Case { name: name.clone(), meta: case["meta"].clone(), tensors });
        }
    }
    // Another folder need not have every kind; ours does.
    assert!(!cases.is_empty() || other.is_some(), "no case of kind {kind} in {}", folder.display());
    cases
}

/// Python writes NaN and infinities bare, which JSON does not know: they become null.
fn without_bare_numbers(text: &str) -> String {
    let parts = text.split('"').enumerate().map(|(i, part)| {
        // Outside of quotes; no string of a manifest has an escaped one.
        if i % 2 == 1 {
            part.to_owned()
        } else {
            ["-Infinity", "Infinity", "NaN"].iter().fold(part.to_owned(), |p, word| p.replace(word, "null"))
        }
    });
    parts.collect::<Vec<_>>().join("\"")
}

/// The largest difference, over 1 or the largest reference value, whichever is more.
pub(crate) fn distance(got: &Tensor, want: &Tensor) -> f64 {
    let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (flat(got), flat(want));
    assert!(got.iter().all(|v| v.is_finite()));
    let scale = want.iter().fold(1f64, |m, v| m.max(v.abs()));
    got.iter().zip(&want).fold(0f64, |m, (g, w)| m.max((g - w).abs())) / scale
}
