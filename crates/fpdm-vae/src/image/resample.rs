//! Resampling with the numbers of Pillow.

use fpdm_core::{Error, Result};

use super::tensor::Picture;

/// The weight of a pixel by its distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All pixels under the new one, alike.
    Box,
    /// Keys 1981 with a = -0.5, over four pixels.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Bicubic => 2.,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Filter::Box if x > -0.5 && x <= 0.5 => 1.,
            Filter::Box => 0.,
            Filter::Bicubic => match x.abs() {
                x if x < 1. => ((A + 2.) * x - (A + 3.)) * x * x + 1.,
                x if x < 2. => (((x - 5.) * x + 8.) * x - 4.) * A,
                _ => 0.,
            },
        }
    }
}

/// Fixed point of Pillow's 8-bit path: 32 bits less 8 for the pixel and 2 for the overshoot.
const BITS: u32 = 22;

/// `picture` at another size, after the algorithm of Pillow's `resize`: filters widen when shrinking, first along the
/// rows, then along the columns, 8 bits between the two.
///
/// # Errors
/// [`Error::Config`] if a side is 0.
pub fn resample(picture: &Picture, width: usize, height: usize, filter: Filter) -> Result<Picture> {
    if width == 0 || height == 0 {
        return Err(Error::config("size", format!("{width}x{height}; give positive sides")));
    }
    let mut data = picture.data().to_vec();
    if width != picture.width() {
        let lines = Lines { count: picture.height(), step: 3 * picture.width(), pixel: 3 };
        data = pass(&data, picture.width(), width, lines, Lines { step: 3 * width, ..lines }, filter);
    }
    if height != picture.height() {
        let lines = Lines { count: width, step: 3, pixel: 3 * width };
        data = pass(&data, picture.height(), height, lines, lines, filter);
    }
    Picture::new(width, height, data)
}

/// Rows or columns of a picture: how many, from one to the next, and from pixel to pixel within one.
#[derive(Clone, Copy)]
struct Lines {
    count: usize,
    step: usize,
    pixel: usize,
}

fn pass(data: &[u8], from: usize, to: usize, source: Lines, target: Lines, filter: Filter) -> Vec<u8> {
    let windows = windows(from, to, filter);
    let mut out = vec![0; target.count * to * 3];
    for line in 0..source.count {
        for (i, (first, weights)) in windows.iter().enumerate() {
            for channel in 0..3 {
                let mut sum = 1i64 << (BITS - 1);
                for (j, &weight) in weights.iter().enumerate() {
                    sum += weight * i64::from(data[line * source.step + (first + j) * source.pixel + channel]);
                }
                out[line * target.step + i * target.pixel + channel] = (sum >> BITS).clamp(0, 255) as u8;
            }
        }
    }
    out
}

/// For each new pixel the first old one it sees, and the weights from there on.
fn windows(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<i64>)> {
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.);
    let support = filter.support() * wide;
    let window = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as i64).max(0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end).map(|x| filter.weight((x as f64 - center + 0.5) * (1. / wide))).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| {
            let w = if sum == 0. { *w } else { w / sum } * f64::from(1u32 << BITS);
            (if w < 0. { w - 0.5 } else { w + 0.5 }) as i64
        };
        (first, weights.iter().map(fixed).collect())
    };
    (0..to).map(window).collect()
}
