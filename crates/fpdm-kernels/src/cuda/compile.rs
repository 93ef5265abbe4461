//! Sources become machine code at first use, and stay on disk.

use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use candle_core::cuda::cudarc::nvrtc::{result, sys};
use candle_core::{Error, Result};

use super::gpu::Source;

const COMMON: &str = include_str!("common.cuh");

/// The machine code of `source` for the compute capability `arch`, with the macros `defines`.
///
/// A cubin, not PTX: a driver refuses PTX of a compiler that is newer than itself. Kept under `FPDM_KERNEL_CACHE`, or
/// the user's cache folder, by what it was made from; a cache that cannot be used costs time and nothing else.
pub(super) fn cubin(source: &Source, defines: &[String], arch: (i32, i32)) -> Result<Vec<u8>> {
    let Source { name, text: source, own } = *source;
    let own = if own { "a" } else { "" };
    let mut options = vec![format!("--gpu-architecture=sm_{}{}{own}", arch.0, arch.1), "--std=c++17".to_owned()];
    options.extend(defines.iter().map(|d| format!("-D{d}")));
    let file = folder().map(|f| f.join(format!("{name}-{}.cubin", key(source, &options))));
    if let Some(code) = file.as_ref().and_then(|f| std::fs::read(f).ok()).filter(|code| code.starts_with(b"\x7fELF")) {
        return Ok(code);
    }
    let code = compile(name, &format!("{COMMON}\n{source}"), &options)?;
    if let Some(file) = file {
        keep(&file, &code);
    }
    Ok(code)
}

fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("FPDM_KERNEL_CACHE") {
        return (!folder.is_empty()).then(|| folder.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("fpdm").join("kernels"))
}

fn key(source: &str, options: &[String]) -> String {
    let version = {
        let (mut major, mut minor) = (0, 0);
        unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        (major, minor)
    };
    let half = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, COMMON, source, options, version, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}

/// Written beside and renamed: another process sees the whole file or none.
fn keep(file: &std::path::Path, code: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let beside = file.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&beside, code));
    if written.and_then(|()| std::fs::rename(&beside, file)).is_err() {
        std::fs::remove_file(&beside).ok();
    }
}

fn compile(name: &str, source: &str, options: &[String]) -> Result<Vec<u8>> {
    let text = |s: &str| CString::new(s).map_err(Error::wrap);
    let source = text(source)?;
    let program = result::create_program(&source, Some(&text(&format!("{name}.cu"))?)).map_err(Error::wrap)?;
    let code = unsafe {
        match result::compile_program(program, options) {
            Ok(()) => {
                let mut size = 0;
                let mut code = Vec::new();
                sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(Error::wrap).and_then(|()| {
                    code.resize(size, 0u8);
                    sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result().map_err(Error::wrap)
                })?;
                Ok(code)
            }
            Err(e) => {
                let log: Vec<u8> =
                    result::get_program_log(program).unwrap_or_default().iter().map(|&c| c as u8).collect();
                let log = String::from_utf8_lossy(&log);
                Err(Error::Msg(format!("cannot compile {name}.cu {options:?}: {e:?}\n{log}")))
            }
        }
    };
    unsafe { result::destroy_program(program) }.map_err(Error::wrap)?;
    code
}
