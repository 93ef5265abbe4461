//! The arrows between the crates, read from their manifests: an arrow that is only agreed on will bend.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate and the crates it may know, in tests too.
const ARROWS: [(&str, &[&str]); 6] = [
    ("fpdm-kernels", &[]),
    ("fpdm-core", &["fpdm-kernels"]),
    ("fpdm-vae", &["fpdm-kernels", "fpdm-core"]),
    ("fpdm-train", &["fpdm-kernels", "fpdm-core"]),
    ("fpdm-sample", &["fpdm-kernels", "fpdm-core"]),
    ("fpdm-eval", &["fpdm-kernels", "fpdm-core"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The workspace's crates among the keys of all dependency tables.
fn siblings(manifest: &str) -> BTreeSet<String> {
    let mut in_dependencies = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            in_dependencies = table.ends_with("dependencies");
            // `[dependencies.fpdm-core]` is a table of its own.
            if let Some((_, name)) = table.split_once("dependencies.") {
                found.insert(name.to_owned());
            }
        } else if in_dependencies {
            found.insert(line.split(['.', '=', ' ']).next().unwrap_or_default().to_owned());
        }
    }
    found.into_iter().filter(|name| name.starts_with("fpdm")).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// How often the keyword stands in code; comments and `unsafe_code` do not count.
fn unsafe_keywords(source: &str) -> usize {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .filter(|word| *word == "unsafe")
        .count()
}

#[test]
fn every_crate_is_here() {
    let folders: BTreeSet<String> = fs::read_dir(root().join("crates"))
        .expect("crates/")
        .flatten()
        .filter(|e| e.path().join("Cargo.toml").exists())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    let known: BTreeSet<String> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, known, "a new crate needs its arrows in this file");
}

#[test]
fn arrows_point_one_way() {
    for (name, allowed) in ARROWS {
        let known = siblings(&read(&root().join("crates").join(name).join("Cargo.toml")));
        let bent: Vec<_> = known.iter().filter(|k| !allowed.contains(&k.as_str())).collect();
        assert!(bent.is_empty(), "{name} must not know {bent:?}");
        assert!(name == "fpdm-kernels" || known.contains("fpdm-kernels") || known.contains("fpdm-core"), "{name}");
    }
}

#[test]
fn a_bent_arrow_is_seen() {
    let bent = "[package]\nname = \"fpdm-vae\"\n[dev-dependencies]\nfpdm-train.workspace = true\n\
                [target.'cfg(unix)'.dependencies]\nfpdm-sample = { path = \"..\" }\n[dependencies.fpdm-core]\npath = \"..\"\n\
                [features]\nfpdm-no = []\n";
    let want: BTreeSet<String> = ["fpdm-core", "fpdm-sample", "fpdm-train"].map(str::to_owned).into();
    assert_eq!(siblings(bent), want);
}

#[test]
fn only_kernels_are_unsafe() {
    assert_eq!(unsafe_keywords("#![deny(unsafe_code)] // no unsafe\nunsafe { x() }"), 1);
    for (name, _) in ARROWS.iter().filter(|(name, _)| *name != "fpdm-kernels") {
        let mut files = Vec::new();
        sources(&root().join("crates").join(name), &mut files);
        assert!(!files.is_empty(), "{name} has no sources");
        let mut mappings = 0;
        for file in files {
            let count = unsafe_keywords(&read(&file));
            // The one exception: weights are mapped into memory, which trusts that nobody truncates the file.
            if *name == "fpdm-core" && file.display().to_string().contains("/src/checkpoint") {
                mappings += count;
            } else {
                assert_eq!(count, 0, "{}: `unsafe` belongs in fpdm-kernels", file.display());
            }
        }
        assert!(mappings <= 1, "{name}: {mappings} × `unsafe` in its checkpoints, where 1 maps files");
    }
}
