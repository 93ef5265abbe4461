//! Splitting work over the threads of rayon.

use rayon::prelude::*;
use std::ops::Range;

/// Elements below which another thread costs more than it saves.
const GRAIN: usize = 1 << 14;

/// `f(0..n)`, in parallel.
pub(crate) fn each(n: usize, f: impl Fn(usize) + Sync + Send) {
    if n == 1 {
        f(0);
    } else {
        (0..n).into_par_iter().for_each(f);
    }
}

/// Pieces of `0..rows` with a fair amount of work each.
pub(crate) fn pieces(rows: usize, cols: usize) -> usize {
    let most = rayon::current_num_threads() * 4;
    (rows * cols / GRAIN).clamp(1, most).min(rows.max(1))
}

pub(crate) fn piece(rows: usize, pieces: usize, i: usize) -> Range<usize> {
    rows * i / pieces..rows * (i + 1) / pieces
}

/// `f` on ranges of rows that cover `0..rows`, in parallel.
pub(crate) fn rows(rows: usize, cols: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let n = pieces(rows, cols);
    each(n, |i| f(piece(rows, n, i)));
}
