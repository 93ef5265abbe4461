//! Matrix products with fused epilogues, for one thread or all of them.

use super::epilogue::Epilogue;
use super::matrix::{Dest, Matrix};
use super::pack::{Fill, Packed, left};
use super::parallel;
use super::scratch::Scratch;
use super::simd::{Job, Real, Simd};
use super::tile::{DEPTH, LEFT_STRIDE, Run, Tile};

/// Tiles of rows that one task takes: a column panel is read from the outer cache once for so many tiles.
const TILES: usize = 4;

/// `c = epilogue(a . b)` over all threads. `c` is valid for (a.rows, b.cols).
pub(crate) fn gemm<T: Real, E: Epilogue<T>>(a: Matrix<'_, T>, b: Matrix<'_, T>, c: Dest<T>, epilogue: E) {
    assert_eq!(a.cols, b.rows, "inner dimensions of a product");
    if a.rows > 0 && b.cols > 0 {
        T::dispatch(Gemm { a, b, c, epilogue });
    }
}

struct Gemm<'a, T, E> {
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    c: Dest<T>,
    epilogue: E,
}

impl<T: Real, E: Epilogue<T>> Job<T> for Gemm<'_, T, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let Self { a, b, c, epilogue } = self;
        let packed = Packed::space::<V>(b.rows, b.cols);
        parallel::each(packed.panels(), |panel| V::enter(Fill { packed: &packed, b, panel }));
        let rows = V::ROWS * TILES;
        let row_blocks = a.rows.div_ceil(rows);
        // Few rows: share the columns out as well.
        let wanted = (2 * rayon::current_num_threads()).div_ceil(row_blocks);
        let col_blocks = wanted.min(packed.panels());
        parallel::each(row_blocks * col_blocks, |task| {
            let (row, col) = (task / col_blocks, task % col_blocks);
            let panels = parallel::piece(packed.panels(), col_blocks, col);
            let r0 = row * rows;
            let count = rows.min(a.rows - r0);
            V::enter(Block { a, b: &packed, c, epilogue, r0, rows: count, panels });
        });
    }
}

/// Rows `r0..r0 + rows` of the product, in the columns of some panels; at most `TILES` tiles of rows.
pub(crate) struct Block<'a, T, E> {
    pub(crate) a: Matrix<'a, T>,
    pub(crate) b: &'a Packed,
    pub(crate) c: Dest<T>,
    pub(crate) epilogue: E,
    pub(crate) r0: usize,
    pub(crate) rows: usize,
    pub(crate) panels: std::ops::Range<usize>,
}

impl<T: Real, E: Epilogue<T>> Job<T> for Block<'_, T, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let Self { a, b, c, epilogue, r0, rows, panels } = self;
        let k = b.k;
        let tiles = rows.div_ceil(V::ROWS);
        let mut scratch = Scratch::new::<T>(tiles * V::ROWS * LEFT_STRIDE);
        let packed = scratch.ptr::<T>();
        let mut edge = [T::default(); 14 * 32];
        // A depth of zero still has an epilogue, hence at least one round.
        for block in 0..k.div_ceil(DEPTH).max(1) {
            let k0 = block * DEPTH;
            let depth = DEPTH.min(k - k0);
            let last = k0 + depth == k;
            // Rows past the end of the last tile keep what the buffer held: they are computed and thrown away.
            unsafe { left::<V>(a, r0, rows, k0, depth, packed) };
            for panel in panels.clone() {
                let vectors = b.vectors(panel);
                let (c0, width) = (panel * 2 * V::LANES, vectors * V::LANES);
                let cols = width.min(b.n - c0);
                for i in 0..tiles {
                    let (row, height) = (r0 + i * V::ROWS, V::ROWS.min(rows - i * V::ROWS));
                    let direct = cols == width && height == V::ROWS;
                    let dest = if direct { c.offset(row, c0) } else { Dest::of(&mut edge, 2 * V::LANES) };
                    unsafe {
                        if !direct && block > 0 {
                            for r in 0..height {
                                std::ptr::copy_nonoverlapping(c.at(row + r, c0), dest.at(r, 0), cols);
                            }
                        }
                        let tile = Tile {
                            depth,
                            left: packed.add(i * V::ROWS * LEFT_STRIDE),
                            right: b.at::<T>(k0, depth, panel),
                            c: dest.at(0, 0),
                            stride: dest.stride,
                            accumulate: block > 0,
                        };
                        match vectors {
                            1 => V::enter(Run::<T, 1>(&tile)),
                            _ => V::enter(Run::<T, 2>(&tile)),
                        }
                        if last && !E::IDENTITY {
                            for r in 0..height {
                                for j in (0..cols).step_by(V::LANES) {
                                    let n = V::LANES.min(cols - j);
                                    let acc = V::load(dest.at(r, j));
                                    epilogue.apply(acc, row + r, c0 + j, n).store(dest.at(r, j));
                                }
                            }
                        }
                        if !direct {
                            for r in 0..height {
                                std::ptr::copy_nonoverlapping(dest.at(r, 0), c.at(row + r, c0), cols);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `c = epilogue(a . b)` on the calling thread. `c` is valid for (a.rows, b.n).
pub(crate) fn multiply<V: Simd, E: Epilogue<V::Elem>>(
    a: Matrix<'_, V::Elem>,
    b: &Packed,
    c: Dest<V::Elem>,
    epilogue: E,
) {
    let step = V::ROWS * TILES;
    for r0 in (0..a.rows).step_by(step) {
        let rows = step.min(a.rows - r0);
        V::enter(Block { a, b, c, epilogue, r0, rows, panels: 0..b.panels() });
    }
}
