//! Convolution of a batch of pictures.

use super::conv_patch::{Geometry, Patch};
use super::conv_tile::Forward;
use super::matrix::Dest;
use super::parallel;
use super::scratch::Scratch;
use super::simd::{Job, Real, Simd};

/// Bytes of a strip that stay in the second cache beside a tile of weights.
const STRIP: usize = 384 << 10;
/// Vectors of a tile.
const WIDE: usize = 3;

/// `min(relu(conv(x) + bias + residual), cap)`, all of it optional but the convolution.
pub(crate) struct Convolution<'a, T> {
    pub(crate) geometry: Geometry,
    pub(crate) batch: usize,
    /// (B, C, H, W)
    pub(crate) x: &'a [T],
    /// The weight of an output channel at a place of the kernel.
    pub(crate) weight: &'a (dyn Fn(usize, usize) -> T + Sync),
    pub(crate) outputs: usize,
    pub(crate) bias: Option<&'a [T]>,
    /// Like the result.
    pub(crate) residual: Option<&'a [T]>,
    pub(crate) relu: bool,
    pub(crate) cap: Option<T>,
}

impl<T: Real> Convolution<'_, T> {
    /// Writes (B, O, H', W') over all threads.
    ///
    /// # Safety
    /// `out` has room for it, in one row.
    pub(crate) unsafe fn run(self, out: Dest<T>) {
        assert_eq!(self.x.len(), self.batch * self.geometry.channels * self.geometry.size.iter().product::<usize>());
        T::dispatch(Run { conv: self, out });
    }
}

struct Run<'a, T> {
    conv: Convolution<'a, T>,
    out: Dest<T>,
}

impl<T: Real> Job<T> for Run<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        // Rows and vectors of a tile fill the registers: 24 of 32, or 12 of 16.
        if V::ROWS >= 8 && self.conv.outputs > 4 {
            batch::<V, 8>(self.conv, self.out);
        } else {
            batch::<V, 4>(self.conv, self.out);
        }
    }
}

#[inline(always)]
fn batch<V: Simd, const R: usize>(conv: Convolution<'_, V::Elem>, out: Dest<V::Elem>) {
    let g = conv.geometry;
    let wanted = 4 * rayon::current_num_threads();
    let fits = (STRIP / (g.row() * size_of::<V::Elem>()).max(1)).max(4);
    let rows = fits.min((conv.batch * g.out[0]).div_ceil(wanted)).clamp(1, g.out[0]);
    let patch = Patch::new(g, rows);
    let weights = pack::<V::Elem, R>(&conv);
    let strips = g.out[0].div_ceil(rows);
    parallel::each(conv.batch * strips, |task| {
        let (sample, first) = (task / strips, task % strips * rows);
        let mut space = patch.space::<V::Elem>();
        let strip = space.ptr::<V::Elem>();
        let area = g.size[0] * g.size[1];
        for c in 0..g.channels {
            let picture = &conv.x[(sample * g.channels + c) * area..][..area];
            unsafe { patch.fill(picture, c, first, strip) };
        }
        let count = rows.min(g.out[0] - first);
        let strip =
            Strip::<'_, V::Elem, R> { patch: &patch, conv: &conv, strip, weights: &weights, sample, first, count, out };
        V::enter(strip);
    });
}

/// Weights in the order in which tiles read them.
fn pack<T: Real, const R: usize>(conv: &Convolution<'_, T>) -> Vec<T> {
    let taps = conv.geometry.taps();
    let mut data = vec![T::default(); conv.outputs.div_ceil(R) * taps * R];
    for o in 0..conv.outputs {
        let tile = &mut data[o / R * taps * R..][..taps * R];
        for p in 0..taps {
            tile[p * R + o % R] = (conv.weight)(o, p);
        }
    }
    data
}

/// Some rows of the result of one sample.
struct Strip<'a, T, const R: usize> {
    patch: &'a Patch,
    conv: &'a Convolution<'a, T>,
    strip: *const T,
    weights: &'a [T],
    sample: usize,
    first: usize,
    count: usize,
    out: Dest<T>,
}

impl<T: Real, const R: usize> Job<T> for Strip<'_, T, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let g = self.patch.geometry;
        let taps = g.taps();
        let len = (self.count - 1) * g.columns() + g.out[1];
        let mut space = Scratch::new::<T>(R * WIDE * V::LANES);
        let buffer = space.ptr::<T>();
        for (tile, weights) in self.weights.chunks_exact(taps * R).enumerate() {
            let mut at = 0;
            while at < len {
                let vectors = (len - at).div_ceil(V::LANES).min(WIDE);
                let x = self.strip.wrapping_add(at);
                let (offsets, weights) = (self.patch.offsets.as_slice(), weights.as_ptr());
                match vectors {
                    1 => V::enter(Forward::<T, R, 1> { x, offsets, weights, out: buffer }),
                    2 => V::enter(Forward::<T, R, 2> { x, offsets, weights, out: buffer }),
                    _ => V::enter(Forward::<T, R, 3> { x, offsets, weights, out: buffer }),
                }
                let width = vectors * V::LANES;
                for i in 0..R.min(self.conv.outputs - tile * R) {
                    let sums = unsafe { std::slice::from_raw_parts(buffer.add(i * width), width.min(len - at)) };
                    self.finish(tile * R + i, at, sums);
                }
                at += width;
            }
        }
    }
}

impl<T: Real, const R: usize> Strip<'_, T, R> {
    /// Writes sums that start at a flat position, without those between two rows.
    #[inline(always)]
    fn finish(&self, output: usize, at: usize, sums: &[T]) {
        let Geometry { out: [height, width], .. } = self.patch.geometry;
        let columns = self.patch.geometry.columns();
        let bias = self.conv.bias.map_or(T::default(), |b| b[output]);
        let (mut row, mut column, mut sums) = (at / columns, at % columns, sums);
        while !sums.is_empty() {
            let (line, rest) = sums.split_at(sums.len().min(columns - column));
            sums = rest;
            let n = line.len().min(width.saturating_sub(column));
            if n > 0 {
                let start = ((self.sample * self.conv.outputs + output) * height + self.first + row) * width + column;
                let to = unsafe { std::slice::from_raw_parts_mut(self.out.at(0, start), n) };
                match self.conv.residual {
                    Some(residual) => {
                        for ((to, &sum), &r) in to.iter_mut().zip(line).zip(&residual[start..start + n]) {
                            *to = sum + bias + r;
                        }
                    }
                    None => {
                        for (to, &sum) in to.iter_mut().zip(line) {
                            *to = sum + bias;
                        }
                    }
                }
                activate(to, self.conv.relu, self.conv.cap);
            }
            (row, column) = (row + 1, 0);
        }
    }
}

/// The activation of finished sums.
#[inline(always)]
pub(crate) fn activate<T: Real>(sums: &mut [T], relu: bool, cap: Option<T>) {
    // Neither is max or min: NaN stays NaN.
    if relu {
        for to in sums.iter_mut() {
            *to = if *to < T::default() { T::default() } else { *to };
        }
    }
    if let Some(cap) = cap {
        for to in sums {
            *to = if *to > cap { cap } else { *to };
        }
    }
}
