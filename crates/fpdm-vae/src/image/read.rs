//! Files to pictures.

use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

use fpdm_core::{Error, Result};
use image::{ImageFormat, ImageReader, Limits};

use super::tensor::Picture;

/// Pixels that [`read`] is usually given: 64 million, three quarters of a gigabyte at 16 bits and four channels.
pub const DEFAULT_MAX_PIXELS: u64 = 1 << 26;

/// Reads a PNG, JPEG or WebP file, whatever its name says.
///
/// The result is RGB with 8 bits: grey is repeated, a palette is looked up, 16 bits are rounded, and alpha is dropped, not blended
/// (as Pillow's `convert("RGB")` does). An orientation in the metadata is ignored, as the published pipelines do. Of
/// an animation the first frame is taken.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Config`] named by the file if it is no picture, is broken, has a
/// side of 0, or more than `max_pixels` pixels, which is decided before the pixels are decoded.
pub fn read(path: impl AsRef<Path>, max_pixels: u64) -> Result<Picture> {
    let path = path.as_ref();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    from_reader(&path.display().to_string(), &|| Ok(BufReader::new(file.try_clone()?)), max_pixels)
}

/// The same from memory; `name` is for messages.
///
/// # Errors
/// Those of [`read`].
pub fn decode(name: &str, bytes: &[u8], max_pixels: u64) -> Result<Picture> {
    from_reader(name, &|| Ok(Cursor::new(bytes)), max_pixels)
}

fn from_reader<R: BufRead + Seek>(
    name: &str,
    open: &dyn Fn() -> std::io::Result<R>,
    max_pixels: u64,
) -> Result<Picture> {
    let broken = |e: &dyn std::fmt::Display| Error::config(name, format!("{e}; expected a PNG, JPEG or WebP picture"));
    let reader = || -> Result<ImageReader<R>> {
        let mut source = open().map_err(|e| broken(&e))?;
        source.rewind().map_err(|e| broken(&e))?;
        ImageReader::new(source).with_guessed_format().map_err(|e| broken(&e))
    };
    let (width, height) = reader()?.into_dimensions().map_err(|e| broken(&e))?;
    if width == 0 || height == 0 {
        return Err(Error::config(name, format!("{width}x{height} pixels; expected a picture with pixels")));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > max_pixels {
        let why =
            format!("{width}x{height} = {pixels} pixels, allowed are {max_pixels}; raise the limit if you trust it");
        return Err(Error::config(name, why));
    }
    let mut reader = reader()?;
    if reader.format() == Some(ImageFormat::Jpeg) {
        let mut bytes = Vec::new();
        let mut source = open().map_err(|e| broken(&e))?;
        source.rewind().and_then(|()| source.read_to_end(&mut bytes)).map_err(|e| broken(&e))?;
        if !is_whole_jpeg(&bytes) {
            return Err(Error::config(name, "a JPEG that is cut short: its picture has no end; get it anew"));
        }
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(width);
    limits.max_image_height = Some(height);
    // Four channels of 16 bits, decoded twice over.
    limits.max_alloc = Some(16 * pixels + (1 << 20));
    reader.limits(limits);
    let rgb = reader.decode().map_err(|e| broken(&e))?.into_rgb8();
    Picture::new(rgb.width() as usize, rgb.height() as usize, rgb.into_raw())
}

/// Whether the last scan is followed by an end of image: the decoder fills what is missing with grey, and a data set of
/// such pictures would be learned from. Within a scan the end's two bytes cannot occur (ITU-T T.81, B.1.1.5).
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xda).is_some_and(|scan| last(0xd9).is_some_and(|end| end > scan))
}
