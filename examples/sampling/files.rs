//! Files that are whole or not there.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

/// Makes the folder and sees whether it can be written to.
pub(crate) fn prepare(folder: &Path) -> Result<()> {
    let hint = || format!("--out {}: not a folder that can be written to", folder.display());
    std::fs::create_dir_all(folder).with_context(hint)?;
    tempfile::tempfile_in(folder).with_context(hint)?;
    Ok(())
}

static WRITING: Mutex<()> = Mutex::new(());

/// Waits until no file is being written, and keeps it so.
pub(crate) fn none_written() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes beside `path` and renames, so that there is never half a file.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let _writing = none_written();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let mut file = builder.tempfile_in(folder)?;
    let mut buffer = BufWriter::new(file.as_file_mut());
    write(&mut buffer)?;
    buffer.flush()?;
    drop(buffer);
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
