//! Files that are whole or not there.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::Tensor;
use tempfile::NamedTempFile;

use super::torch;
use crate::{Error, Result};

/// Writes safetensors: beside the target first, then renamed to it.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written to; [`Error::Weights`] if a tensor cannot be stored.
pub fn write_safetensors(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<()> {
    let path = path.as_ref();
    replace(path, |file| {
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let views = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::serialize_to_file(views, Some(metadata), file.path()).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io(path, e),
            e => Error::Weights { origin: path.display().to_string(), problems: vec![e.to_string()] },
        })
    })
}

/// Writes an archive that `torch.load(weights_only=True)` reads as an `OrderedDict`: beside the target first, then
/// renamed to it.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_torch(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<()> {
    replace(path.as_ref(), |file| torch::write(std::io::BufWriter::new(file.as_file_mut()), tensors))
}

/// Writes a text, `config.json` say: beside the target first, then renamed to it.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written to.
pub fn write_text(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    replace(path, |file| std::io::Write::write_all(file, text.as_bytes()).map_err(|e| Error::io(path, e)))
}

/// Runs `write` on a temporary file in the folder of `path`, and renames it once it is on the disk.
fn replace(path: &Path, write: impl FnOnce(&mut NamedTempFile) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    // A temporary file is private by default; the umask decides for this one.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
    write(&mut file)?;
    file.as_file().sync_all().map_err(|e| Error::io(path, e))?;
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    // The rename itself lives in the folder.
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(folder, e))?;
    Ok(())
}
