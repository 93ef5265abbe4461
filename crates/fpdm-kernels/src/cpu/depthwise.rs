//! Convolution with one kernel a channel.

use super::conv::activate;
use super::conv_patch::{Geometry, Patch};
use super::matrix::Dest;
use super::parallel;
use super::simd::{Job, Real, Simd};
use std::ops::Range;

/// Vectors of a run of sums: enough to hide the latency of one multiplication after the other.
const WIDE: usize = 6;

/// `min(relu(conv(x) + bias), cap)`, channel by channel.
pub(crate) struct Depthwise<'a, T> {
    /// Of one channel.
    pub(crate) geometry: Geometry,
    pub(crate) channels: usize,
    /// (B, C, H, W)
    pub(crate) x: &'a [T],
    /// (C, K, L)
    pub(crate) weights: &'a [T],
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) relu: bool,
    pub(crate) cap: Option<T>,
}

impl<T: Real> Depthwise<'_, T> {
    /// Writes (B, C, H', W') over all threads.
    ///
    /// # Safety
    /// `out` has room for it, in one row.
    pub(crate) unsafe fn run(self, out: Dest<T>) {
        let Geometry { size, out: [height, width], .. } = self.geometry;
        let planes = self.x.len() / (size[0] * size[1]).max(1);
        assert_eq!(planes * size[0] * size[1], self.x.len());
        assert_eq!(self.weights.len(), self.channels * self.geometry.taps());
        let patch = Patch::new(self.geometry, height);
        // What goes in costs like what comes out.
        let work = size[0] * size[1] + height * width;
        parallel::rows(planes, work, |planes| T::dispatch(Planes { conv: &self, patch: &patch, planes, out }));
    }
}

/// Some channels of some samples.
struct Planes<'a, T> {
    conv: &'a Depthwise<'a, T>,
    patch: &'a Patch,
    planes: Range<usize>,
    out: Dest<T>,
}

impl<T: Real> Job<T> for Planes<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let Self { conv, patch, planes, out } = self;
        let Geometry { size, out: [height, width], .. } = conv.geometry;
        let (area, taps, columns) = (size[0] * size[1], conv.geometry.taps(), conv.geometry.columns());
        let len = (height - 1) * columns + width;
        let mut space = patch.space::<T>();
        let strip = space.ptr::<T>();
        // The sums of a plane, with those between two rows.
        let mut sums = vec![T::default(); len.div_ceil(V::LANES) * V::LANES];
        for plane in planes {
            let channel = plane % conv.channels;
            unsafe { patch.fill(&conv.x[plane * area..][..area], 0, 0, strip) };
            let weights = &conv.weights[channel * taps..][..taps];
            let bias = conv.bias.map_or(T::default(), |b| b[channel]);
            let mut at = 0;
            while at + WIDE * V::LANES <= sums.len() {
                unsafe { run::<V, WIDE>(strip.add(at), &patch.offsets, weights, bias, sums.as_mut_ptr().add(at)) };
                at += WIDE * V::LANES;
            }
            while at < sums.len() {
                unsafe { run::<V, 1>(strip.add(at), &patch.offsets, weights, bias, sums.as_mut_ptr().add(at)) };
                at += V::LANES;
            }
            activate(&mut sums, conv.relu, conv.cap);
            for (y, row) in sums.chunks(columns).enumerate().take(height) {
                let to = out.at(0, (plane * height + y) * width);
                unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), to, width) };
            }
        }
    }
}

/// `N` vectors of sums: row p of what is seen starts at `x + offsets[p]`.
///
/// # Safety
/// `out` has room for them, and so has each row.
#[inline(always)]
unsafe fn run<V: Simd, const N: usize>(
    x: *const V::Elem,
    offsets: &[usize],
    weights: &[V::Elem],
    bias: V::Elem,
    out: *mut V::Elem,
) {
    let mut sums = [V::splat(bias); N];
    for (&offset, &weight) in offsets.iter().zip(weights) {
        let weight = V::splat(weight);
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = unsafe { V::load(x.add(offset + j * V::LANES)) }.fma(weight, *sum);
        }
    }
    for (j, sum) in sums.into_iter().enumerate() {
        unsafe { sum.store(out.add(j * V::LANES)) };
    }
}
