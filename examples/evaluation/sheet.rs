//! Samples beside the training pictures that are most like them.

use anyhow::{Result, bail};
use fpdm_eval::Neighbour;
use fpdm_vae::image::{Picture, center_crop, from_tensor, grid, write_png};
use serde_json::{Value, json};

use super::options::Options;
use super::set::Set;

/// Pairs of the second sheet.
const CLOSEST: usize = 10;
const PADDING: usize = 4;

/// Writes `neighbours.png`: samples, evenly chosen, each followed by its nearest training pictures, two a row; and
/// `closest.png`: the ten pairs of a sample and a training picture that are nearest, from the nearest on, two a row.
pub(crate) fn write(options: &Options, samples: &Set, reference: &Set, found: &[Vec<Neighbour>]) -> Result<()> {
    let shown = options.shown.min(samples.len());
    let first = picture(samples, 0)?;
    let side = first.width().min(first.height());
    let square = |set: &Set, i: usize| -> Result<Picture> { Ok(center_crop(&picture(set, i)?, side)?) };
    if shown > 0 {
        let mut pictures = Vec::new();
        for i in (0..shown).map(|n| n * samples.len() / shown) {
            pictures.push(square(samples, i)?);
            for neighbour in &found[i] {
                pictures.push(square(reference, neighbour.index)?);
            }
        }
        let columns = pictures.len() / shown * shown.min(2);
        write_png(options.out.join("neighbours.png"), &grid(&pictures, columns, PADDING)?)?;
    }
    let mut pictures = Vec::new();
    for (i, neighbour) in closest(found) {
        println!("{:.3}  {}  {}", neighbour.distance, samples.entry(i), reference.entry(neighbour.index));
        pictures.push(square(samples, i)?);
        pictures.push(square(reference, neighbour.index)?);
    }
    write_png(options.out.join("closest.png"), &grid(&pictures, 4, PADDING)?)?;
    Ok(())
}

/// The nearest pairs of a sample and a training picture, from the nearest on.
fn closest(found: &[Vec<Neighbour>]) -> Vec<(usize, Neighbour)> {
    let mut pairs: Vec<(usize, Neighbour)> =
        found.iter().enumerate().filter_map(|(i, n)| Some((i, *n.first()?))).collect();
    pairs.sort_by(|a, b| a.1.distance.total_cmp(&b.1.distance));
    pairs.truncate(CLOSEST);
    pairs
}

/// The same pairs by name.
pub(crate) fn told(samples: &Set, reference: &Set, found: &[Vec<Neighbour>]) -> Value {
    let pair = |(i, n): (usize, Neighbour)| json!({ "sample": samples.entry(i), "reference": reference.entry(n.index), "distance": n.distance });
    closest(found).into_iter().map(pair).collect()
}

fn picture(set: &Set, i: usize) -> Result<Picture> {
    let Some(pixels) = set.pixels(i..i + 1)?.into_iter().next() else { bail!("{}: no picture {i}", set.name) };
    let Some(picture) = from_tensor(&pixels)?.into_iter().next() else { bail!("{}: no picture {i}", set.name) };
    Ok(picture)
}
