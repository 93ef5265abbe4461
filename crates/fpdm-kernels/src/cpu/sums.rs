//! Sums over the rows of each group: the gradients of biases, gates, shifts and scales.

use super::matrix::{Dest, Matrix};
use super::parallel;
use super::simd::{Job, Real, Simd, lanes};
use std::ops::Range;

struct Sum<'a, T> {
    g: Matrix<'a, T>,
    y: Option<Matrix<'a, T>>,
    out: Dest<T>,
    rows: Range<usize>,
}

impl<T: Real> Job<T> for Sum<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for r in self.rows {
            unsafe {
                lanes!(V, self.g.cols, |c, n| {
                    let g = V::load_n(self.g.at(r, c), n, T::default());
                    let sum = V::load_n(self.out.at(0, c), n, T::default());
                    let sum = match &self.y {
                        None => sum.add(g),
                        Some(y) => g.fma(V::load_n(y.at(r, c), n, T::default()), sum),
                    };
                    sum.store_n(self.out.at(0, c), n);
                });
            }
        }
    }
}

/// `(groups, cols)`: the sum of `g`, or of `g y`, over the rows of each group. Columns are adjacent.
pub(crate) fn by_group<T: Real>(g: Matrix<'_, T>, y: Option<Matrix<'_, T>>, groups: usize) -> Vec<T> {
    partial(groups, g.rows / groups.max(1), g.cols, |rows, out| T::dispatch(Sum { g, y, out, rows }))
}

/// Runs `add` on pieces of the rows of each group, each with a zeroed row of its own to add to, and adds those up.
pub(crate) fn partial<T: Real>(
    groups: usize,
    tokens: usize,
    cols: usize,
    add: impl Fn(Range<usize>, Dest<T>) + Sync + Send,
) -> Vec<T> {
    let most = parallel::pieces(groups * tokens, cols);
    let pieces = most.div_ceil(groups.max(1)).clamp(1, tokens.max(1));
    let mut sums = vec![T::default(); groups * pieces * cols];
    let out = Dest::of(&mut sums, cols);
    parallel::each(groups * pieces, |task| {
        let rows = parallel::piece(tokens, pieces, task % pieces);
        let start = task / pieces * tokens;
        add(start + rows.start..start + rows.end, out.offset(task, 0));
    });
    for group in sums.chunks_mut((pieces * cols).max(1)) {
        let (total, others) = group.split_at_mut(cols);
        for other in others.chunks(cols.max(1)) {
            for (t, o) in total.iter_mut().zip(other) {
                *t += *o;
            }
        }
    }
    if pieces > 1 {
        for group in 0..groups {
            sums.copy_within(group * pieces * cols..(group * pieces + 1) * cols, group * cols);
        }
        sums.truncate(groups * cols);
    }
    sums
}
