//! Pictures that know how they were made.

use std::path::Path;

use anyhow::{Context, Result, bail};
use fpdm_vae::image::Picture;
use serde::{Deserialize, Serialize};

use crate::sampling::files::replace;
use crate::sampling::network::Label;
use crate::sampling::settings::Settings;

/// The keyword of the PNG's text.
const KEYWORD: &str = "fpdm";

/// What a PNG of ours says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The command's choices.
    pub(crate) settings: Settings,
    /// The picture's number.
    pub(crate) image: u64,
    /// Its label; null for the null label or a network without.
    pub(crate) label: Option<Label>,
}

/// Writes a PNG, with its origin if it is a single picture.
pub(crate) fn write_png(path: &Path, picture: &Picture, origin: Option<&Origin>) -> Result<()> {
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
pub(crate) fn read_origin(path: &Path) -> Result<Origin> {
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
