//! Copies of operands in the order in which the tile reads them.

use super::matrix::Matrix;
use super::scratch::Scratch;
use super::simd::{Job, Real, Simd};
use super::tile::{DEPTH, LEFT_STRIDE};

/// A right operand (k, n) cut into blocks of `DEPTH` rows and panels two vectors wide (the last may be one wide);
/// missing columns are zero.
pub(crate) struct Packed {
    _buffer: Scratch,
    base: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    lanes: usize,
    columns: usize,
}

impl Packed {
    /// Space for `b`; every panel must then be filled.
    pub(crate) fn space<V: Simd>(k: usize, n: usize) -> Self {
        let columns = n.div_ceil(V::LANES) * V::LANES;
        let mut buffer = Scratch::new::<V::Elem>(columns * k);
        let base = buffer.ptr::<V::Elem>() as usize;
        Self { _buffer: buffer, base, k, n, lanes: V::LANES, columns }
    }

    pub(crate) fn new<V: Simd>(b: Matrix<'_, V::Elem>) -> Self {
        let packed = Self::space::<V>(b.rows, b.cols);
        for p in 0..packed.panels() {
            V::enter(Fill { packed: &packed, b, panel: p });
        }
        packed
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(2 * self.lanes)
    }

    /// Width of a panel in vectors.
    #[inline(always)]
    pub(crate) fn vectors(&self, panel: usize) -> usize {
        ((self.columns - panel * 2 * self.lanes) / self.lanes).min(2)
    }

    /// The panel's rows from `k0` on, which holds `depth` rows.
    #[inline(always)]
    pub(crate) fn at<T>(&self, k0: usize, depth: usize, panel: usize) -> *mut T {
        (self.base as *mut T).wrapping_add(k0 * self.columns + panel * 2 * self.lanes * depth)
    }
}

/// Fills one panel from the matrix.
pub(crate) struct Fill<'a, T> {
    pub(crate) packed: &'a Packed,
    pub(crate) b: Matrix<'a, T>,
    pub(crate) panel: usize,
}

impl<T: Real> Job<T> for Fill<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let Self { packed, b, panel } = self;
        let (c0, width) = (panel * 2 * V::LANES, packed.vectors(panel) * V::LANES);
        let valid = width.min(b.cols - c0);
        for k0 in (0..b.rows).step_by(DEPTH) {
            let depth = DEPTH.min(b.rows - k0);
            let out = packed.at::<T>(k0, depth, panel);
            unsafe {
                if b.col_stride == 1 {
                    for p in 0..depth {
                        let (src, dst) = (b.at(k0 + p, c0), out.add(p * width));
                        for j in (0..width).step_by(V::LANES) {
                            let n = V::LANES.min(valid.saturating_sub(j));
                            V::load_n(src.wrapping_add(j), n, T::default()).store(dst.add(j));
                        }
                    }
                } else {
                    // Eight rows at a time: each cache line of the source is read in one go.
                    for p0 in (0..depth).step_by(8) {
                        let p1 = depth.min(p0 + 8);
                        for j in 0..width {
                            for p in p0..p1 {
                                let x = if j < valid { *b.at(k0 + p, c0 + j) } else { T::default() };
                                *out.add(p * width + j) = x;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Copies rows `r0..r0 + rows` of columns `k0..k0 + depth` to `out`, `LEFT_STRIDE` apart.
///
/// # Safety
/// `out` has room for `rows` such rows, and the block lies in `a`.
#[inline(always)]
pub(crate) unsafe fn left<V: Simd>(
    a: Matrix<'_, V::Elem>,
    r0: usize,
    rows: usize,
    k0: usize,
    depth: usize,
    out: *mut V::Elem,
) {
    unsafe {
        if a.col_stride == 1 {
            for i in 0..rows {
                std::ptr::copy_nonoverlapping(a.at(r0 + i, k0), out.add(i * LEFT_STRIDE), depth);
            }
        } else {
            for p0 in (0..depth).step_by(16) {
                for i in 0..rows {
                    for p in p0..depth.min(p0 + 16) {
                        *out.add(i * LEFT_STRIDE + p) = *a.at(r0 + i, k0 + p);
                    }
                }
            }
        }
    }
}
