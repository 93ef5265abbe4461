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

/// Defines a tile with a named accumulator for each row: an array of rows would be left in memory.
macro_rules! tile {
    ($name:ident: $($row:ident $i:literal),*) => {
        #[inline(always)]
        pub(crate) unsafe fn $name<V: Simd, const NV: usize>(t: &Tile<V::Elem>) {
            let zero = V::splat(V::Elem::default());
            $(let mut $row = [zero; NV];)*
            unsafe {
                for p in 0..t.depth {
                    let mut right = [zero; NV];
                    for j in 0..NV {
                        right[j] = V::load(t.right.add((p * NV + j) * V::LANES));
                    }
                    $(
                        let left = V::splat(*t.left.add($i * LEFT_STRIDE + p));
                        for j in 0..NV {
                            $row[j] = left.fma(right[j], $row[j]);
                        }
                    )*
                }
                $(
                    for j in 0..NV {
                        let c = t.c.add($i * t.stride + j * V::LANES);
                        let sum = if t.accumulate { V::load(c).add($row[j]) } else { $row[j] };
                        sum.store(c);
                    }
                )*
            }
        }
    };
}

tile!(tile4: r0 0, r1 1, r2 2, r3 3);
tile!(tile6: r0 0, r1 1, r2 2, r3 3, r4 4, r5 5);
tile!(tile14: r0 0, r1 1, r2 2, r3 3, r4 4, r5 5, r6 6, r7 7, r8 8, r9 9, r10 10, r11 11, r12 12, r13 13);

/// The tile as a function of its own: one copy of the loop, whatever is done with its result.
pub(crate) struct Run<'a, T, const NV: usize>(pub(crate) &'a Tile<T>);

impl<T: Real, const NV: usize> Job<T> for Run<'_, T, NV> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        unsafe { V::tile::<NV>(self.0) }
    }
}
