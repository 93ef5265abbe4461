//! The gradient of a convolution's weights and bias.

use super::conv_patch::{Geometry, Patch};
use super::conv_tile::{TAPS, Weight};
use super::matrix::Dest;
use super::parallel;
use super::scratch::Scratch;
use super::simd::{Job, Real, Simd};

/// Elements of a channel that are worked on at a time: rows of a tile stay in the second cache.
const SPAN: usize = 2048;

/// The gradient (O, taps) from `x` (B, C, H, W) and the gradient `g` (B, O, H', W') of the result.
pub(crate) fn weight_gradient<T: Real>(geometry: Geometry, x: &[T], g: &[T], batch: usize, outputs: usize) -> Vec<T> {
    let [height, width] = geometry.size;
    assert_eq!(x.len(), batch * geometry.channels * height * width, "pictures of a convolution");
    assert_eq!(g.len(), batch * outputs * geometry.out[0] * geometry.out[1], "gradient of a convolution");
    let mut out = vec![T::default(); outputs * geometry.taps()];
    let to = Dest::of(&mut out, geometry.taps());
    T::dispatch(Run { geometry, x, g, batch, outputs, to });
    out
}

/// The gradient (O) of the bias from the gradient (B, O, H', W') of the result.
pub(crate) fn bias_gradient<T: Real>(g: &[T], outputs: usize, area: usize) -> Vec<T> {
    let mut out = vec![T::default(); outputs];
    let to = Dest::of(&mut out, outputs);
    parallel::each(outputs, |o| {
        let mut sum = 0f64;
        for sample in g.chunks_exact(outputs * area) {
            // Rows of moderate length in the type itself, their sums in f64: fast and accurate.
            for part in sample[o * area..][..area].chunks(256) {
                let mut lanes = [T::default(); 8];
                for (i, &x) in part.iter().enumerate() {
                    lanes[i % 8] += x;
                }
                sum += lanes.iter().map(|x| x.to_f64()).sum::<f64>();
            }
        }
        unsafe { *to.at(0, o) = T::from_f64(sum) };
    });
    out
}

struct Run<'a, T> {
    geometry: Geometry,
    x: &'a [T],
    g: &'a [T],
    batch: usize,
    outputs: usize,
    to: Dest<T>,
}

impl<T: Real> Job<T> for Run<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        if V::ROWS >= 8 && self.outputs > 4 { batch::<V, 8>(self) } else { batch::<V, 4>(self) }
    }
}

#[inline(always)]
fn batch<V: Simd, const R: usize>(run: Run<'_, V::Elem>) {
    let Run { geometry, x, g, batch, outputs, to } = run;
    let columns = geometry.columns();
    let rows = (SPAN / columns).clamp(1, geometry.out[0]);
    let patch = Patch::new(geometry, rows);
    let mut space = patch.space::<V::Elem>();
    // The addresses as numbers, which threads may share.
    let strip = space.ptr::<V::Elem>() as usize;
    let stride = ((rows * columns).div_ceil(16) | 1) * 16;
    let tiles = outputs.div_ceil(R);
    let mut gradient = Scratch::new::<V::Elem>(stride * tiles * R);
    let flat = gradient.ptr::<V::Elem>() as usize;
    let (area, out_area) = (geometry.size[0] * geometry.size[1], geometry.out[0] * geometry.out[1]);
    let pieces = (2 * rayon::current_num_threads()).div_ceil(tiles).min(patch.offsets.len().div_ceil(TAPS));
    for sample in 0..batch {
        for first in (0..geometry.out[0]).step_by(rows) {
            let count = rows.min(geometry.out[0] - first);
            let len = ((count - 1) * columns + geometry.out[1]).div_ceil(V::LANES) * V::LANES;
            parallel::each(geometry.channels + tiles * R, |i| unsafe {
                if let Some(o) = i.checked_sub(geometry.channels) {
                    let to = std::slice::from_raw_parts_mut((flat as *mut V::Elem).add(o * stride), stride);
                    to.fill(V::Elem::default());
                    if o < outputs {
                        let rows = &g[(sample * outputs + o) * out_area..][..out_area];
                        let rows = rows.chunks_exact(geometry.out[1]).skip(first).take(count);
                        for (to, row) in to.chunks_mut(columns).zip(rows) {
                            to[..row.len()].copy_from_slice(row);
                        }
                    }
                } else {
                    let picture = &x[(sample * geometry.channels + i) * area..][..area];
                    patch.fill(picture, i, first, strip as *mut V::Elem);
                }
            });
            parallel::each(tiles * pieces, |task| {
                let (tile, piece) = (task / pieces, task % pieces);
                let groups = parallel::piece(patch.offsets.len().div_ceil(TAPS), pieces, piece);
                V::enter(Tiles::<'_, V::Elem, R> {
                    offsets: &patch.offsets,
                    groups,
                    strip: strip as *const V::Elem,
                    g: (flat as *const V::Elem).wrapping_add(tile * R * stride),
                    stride,
                    len,
                    valid: R.min(outputs - tile * R),
                    to: to.offset(tile * R, 0),
                });
            });
        }
    }
}

/// Adds what one strip says about some places of the kernel for `R` outputs.
struct Tiles<'a, T, const R: usize> {
    offsets: &'a [usize],
    groups: std::ops::Range<usize>,
    strip: *const T,
    g: *const T,
    stride: usize,
    len: usize,
    valid: usize,
    to: Dest<T>,
}

impl<T: Real, const R: usize> Job<T> for Tiles<'_, T, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for group in self.groups {
            let taps = &self.offsets[group * TAPS..][..TAPS.min(self.offsets.len() - group * TAPS)];
            let mut x = [self.strip.wrapping_add(taps[0]); TAPS];
            for (x, &offset) in x.iter_mut().zip(taps) {
                *x = self.strip.wrapping_add(offset);
            }
            let sums = V::enter(Weight::<T, R> { g: self.g, stride: self.stride, x, len: self.len });
            for (i, row) in sums.iter().enumerate().take(self.valid) {
                for (j, &sum) in row.iter().enumerate().take(taps.len()) {
                    unsafe { *self.to.at(i, group * TAPS + j) += sum };
                }
            }
        }
    }
}
