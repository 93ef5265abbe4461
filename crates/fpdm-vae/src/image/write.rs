//! Pictures to files.

use std::io::Write;
use std::path::Path;

use fpdm_core::{Error, Result};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::tensor::Picture;

/// Writes a PNG: to a file beside `path` first, then in its place, so that there is never half a picture.
///
/// # Errors
/// [`Error::Io`] if the folder does not exist or cannot be written, [`Error::Config`] if the encoder refuses the size.
pub fn write_png(path: impl AsRef<Path>, picture: &Picture) -> Result<()> {
    let path = path.as_ref();
    let size = |n: usize| {
        u32::try_from(n).map_err(|_| Error::config("picture", format!("a side of {n} pixels is too large for a PNG")))
    };
    let (width, height) = (size(picture.width())?, size(picture.height())?);
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(picture.data(), width, height, ExtendedColorType::Rgb8)
        .map_err(|e| Error::config(path.display().to_string(), e.to_string()))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| Error::io(path, e))?;
    file.write_all(&bytes).map_err(|e| Error::io(path, e))?;
    file.as_file().sync_all().map_err(|e| Error::io(path, e))?;
    // Temporary files are private, pictures are not.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(|e| Error::io(path, e))?;
    }
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}
