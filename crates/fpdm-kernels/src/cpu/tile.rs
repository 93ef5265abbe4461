//! The innermost loop of every matrix product: a tile that stays in registers.

use super::simd::{Job, Real, Simd};

/// Columns of the left operand taken at a time: one row panel and one column panel stay in the first two caches.
pub(crate) const DEPTH: usize = 384;
/// Distance between the rows of a packed left operand. Not a multiple of a page, so that its rows do not compete for
/// the same cache sets.
pub(crate) const LEFT_STRIDE: usize = DEPTH + 16;

/// `c (ROWS, NV vectors) = [c +] left (ROWS, depth) . right (depth, NV vectors)`.
///
/// `left` has rows `LEFT_STRIDE` apart, `right` is packed by depth, `c` has rows `stride` apart; all three are valid
/// for a whole tile.
pub(crate) struct Tile<T> {
    pub(crate) depth: usize,
    pub(crate) left: *const T,
    pub(crate) right: *const T,
    pub(crate) c: *mut T,
    pub(crate) stride: usize,
    pub(crate) accumulate: bool,
}

#[inline(always)]
pub(crate) unsafe fn tile<V: Simd, const ROWS: usize, const NV: usize>(t: &Tile<V::Elem>) {
    let mut acc = [[V::splat(V::Elem::default()); NV]; ROWS];
    unsafe {
        for p in 0..t.depth {
            let mut right = [V::splat(V::Elem::default()); NV];
            for (j, r) in right.iter_mut().enumerate() {
                *r = V::load(t.right.add((p * NV + j) * V::LANES));
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let left = V::splat(*t.left.add(i * LEFT_STRIDE + p));
                for (a, r) in row.iter_mut().zip(&right) {
                    *a = left.fma(*r, *a);
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, a) in row.iter().enumerate() {
                let c = t.c.add(i * t.stride + j * V::LANES);
                let sum = if t.accumulate { V::load(c).add(*a) } else { *a };
                sum.store(c);
            }
        }
    }
}

/// The tile as a function of its own: one copy of the loop, whatever is done with its result.
pub(crate) struct Run<'a, T, const NV: usize>(pub(crate) &'a Tile<T>);

impl<T: Real, const NV: usize> Job<T> for Run<'_, T, NV> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        unsafe { V::tile::<NV>(self.0) }
    }
}
