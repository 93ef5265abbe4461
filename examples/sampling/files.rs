//! Pictures that know how they were made.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use fpdm_vae::image::Picture;
use serde::{Deserialize, Serialize};

use super::options::Settings;

/// The keyword of the PNG's text.
const KEYWORD: &str = "fpdm";

/// What a PNG of ours says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The command's choices.
    pub settings: Settings,
    /// The picture's number.
    pub image: u64,
    /// Its class; null for a network without.
    pub label: Option<u32>,
}

/// Makes the folder and sees whether it can be written to.
pub fn prepare(folder: &Path) -> Result<()> {
    let hint = || format!("--out {}: not a folder that can be written to", folder.display());
    std::fs::create_dir_all(folder).with_context(hint)?;
    tempfile::tempfile_in(folder).with_context(hint)?;
    Ok(())
}

/// Writes beside `path` and renames, so that there is never half a file.
pub fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
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

/// Writes a PNG, with its origin if it is a single picture.
pub fn write_png(path: &Path, picture: &Picture, origin: Option<&Origin>) -> Result<()> {
    replace(path, |file| {
        let mut encoder = png::Encoder::new(file, u32::try_from(picture.width())?, u32::try_from(picture.height())?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        if let Some(origin) = origin {
            encoder.add_itxt_chunk(KEYWORD.to_owned(), serde_json::to_string(origin)?)?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(picture.data())?;
        writer.finish()?;
        Ok(())
    })
}

/// What a PNG of ours says about itself.
pub fn read_origin(path: &Path) -> Result<Origin> {
    let file = std::fs::File::open(path).with_context(|| format!("--from-image {}", path.display()))?;
    let mut reader = png::Decoder::new(std::io::BufReader::new(file))
        .read_info()
        .with_context(|| format!("--from-image {}: no PNG", path.display()))?;
    // The text may come after the pixels.
    reader.finish().ok();
    for chunk in &reader.info().utf8_text {
        if chunk.keyword == KEYWORD {
            let what = || format!("--from-image {}: its settings are not of this version", path.display());
            return serde_json::from_str(&chunk.get_text()?).with_context(what);
        }
    }
    bail!("--from-image {}: holds no settings; give a single picture that this command has written", path.display())
}

/// Writes JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    replace(path, |file| Ok(writeln!(file, "{}", serde_json::to_string_pretty(value)?)?))
}
