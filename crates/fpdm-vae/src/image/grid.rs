//! Many pictures in one.

use fpdm_core::{Error, Result};

use super::tensor::Picture;

/// Pictures of one size in rows of `columns`, `padding` black pixels around and between them.
///
/// # Errors
/// [`Error::Config`] if there is no picture or no column, [`Error::Shape`] if the sizes differ.
pub fn grid(pictures: &[Picture], columns: usize, padding: usize) -> Result<Picture> {
    let Some(first) = pictures.first() else {
        return Err(Error::config("pictures", "none; give at least one"));
    };
    if columns == 0 {
        return Err(Error::config("columns", "0; give at least 1"));
    }
    let (width, height) = (first.width(), first.height());
    if let Some(other) = pictures.iter().find(|p| (p.width(), p.height()) != (width, height)) {
        return Err(Error::shape("grid: all pictures alike", (width, height), (other.width(), other.height())));
    }
    let columns = columns.min(pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let extent = |size: usize, n: usize| size.checked_add(padding)?.checked_mul(n)?.checked_add(padding);
    let sides = extent(width, columns).zip(extent(height, rows));
    let total = sides.filter(|(w, h)| w.checked_mul(*h).is_some_and(|n| n < usize::MAX / 8));
    let Some((full_width, full_height)) = total else {
        return Err(Error::config("padding", format!("{padding} pixels make a grid too large for memory")));
    };
    let mut data = vec![0; 3 * full_width * full_height];
    for (i, picture) in pictures.iter().enumerate() {
        let (left, top) = (padding + i % columns * (width + padding), padding + i / columns * (height + padding));
        for (y, row) in picture.data().chunks_exact(3 * width).enumerate() {
            data[3 * ((top + y) * full_width + left)..][..3 * width].copy_from_slice(row);
        }
    }
    Picture::new(full_width, full_height, data)
}
