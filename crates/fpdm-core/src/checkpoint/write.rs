//! Files that are whole or not there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::Tensor;
use safetensors::View;
use safetensors::tensor::{Metadata, TensorInfo};
use tempfile::NamedTempFile;

use super::torch;
use crate::{Error, Result};

/// Writes safetensors: beside the target first, then renamed to it.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written to; [`Error::Weights`] if a tensor cannot be stored.
pub fn write_safetensors(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<()> {
    let path = path.as_ref();
    // The writer of the `safetensors` crate is not used: its file is not synchronised and private to the user.
    let mut sorted: Vec<(&String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name, tensor)).collect();
    // Wide elements first, so that all are aligned.
    sorted.sort_by(|(a, x), (b, y)| View::dtype(y).cmp(&View::dtype(x)).then(a.cmp(b)));
    let (mut infos, mut end) = (Vec::new(), 0);
    for (name, tensor) in &sorted {
        let start = end;
        end += tensor.data_len();
        let shape = tensor.dims().to_vec();
        infos.push(((*name).clone(), TensorInfo { dtype: View::dtype(tensor), shape, data_offsets: (start, end) }));
    }
    let marker = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(marker), infos)
        .map_err(|e| e.to_string())
        .and_then(|metadata| serde_json::to_vec(&metadata).map_err(|e| e.to_string()));
    let mut header =
        header.map_err(|why| Error::Weights { origin: path.display().to_string(), problems: vec![why] })?;
    header.resize(header.len().next_multiple_of(8), b' ');
    replace(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
        let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(|e| Error::io(path, e));
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        for (_, tensor) in &sorted {
            write(&tensor.data())?;
        }
        out.flush().map_err(|e| Error::io(path, e))
    })
}

/// Writes an archive that `torch.load(weights_only=True)` reads as an `OrderedDict`: beside the target first, then
/// renamed to it.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_torch(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<()> {
    replace(path.as_ref(), |file| torch::write(BufWriter::new(file.as_file_mut()), tensors))
}

/// Writes a text, `config.json` say: beside the target first, then renamed to it.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written to.
pub fn write_text(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    replace(path, |file| file.write_all(text.as_bytes()).map_err(|e| Error::io(path, e)))
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
