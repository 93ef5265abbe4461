//! `[x +] gate y`, and `x + b`, with the small operand shared by groups of rows.

use super::matrix::{Dest, Matrix, written};
use super::parallel;
use super::simd::{Job, Real, Simd, lanes};
use std::ops::Range;

struct Rows<'a, T> {
    x: Option<Matrix<'a, T>>,
    gate: Matrix<'a, T>,
    y: Matrix<'a, T>,
    tokens: usize,
    out: Dest<T>,
    rows: Range<usize>,
}

impl<T: Real> Job<T> for Rows<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for r in self.rows {
            let group = r / self.tokens;
            unsafe {
                lanes!(V, self.y.cols, |c, n| {
                    let y = V::load_n(self.y.at(r, c), n, T::default());
                    let gate = V::load_n(self.gate.at(group, c), n, T::default());
                    let z = match &self.x {
                        None => gate.mul(y),
                        Some(x) => gate.fma(y, V::load_n(x.at(r, c), n, T::default())),
                    };
                    z.store_n(self.out.at(r, c), n);
                });
            }
        }
    }
}

/// `x + gate y` or `gate y`. Row r belongs to row `r / (y.rows / gate.rows)` of the gate; columns are adjacent.
pub(crate) fn gated<T: Real>(x: Option<Matrix<'_, T>>, gate: Matrix<'_, T>, y: Matrix<'_, T>) -> Vec<T> {
    let tokens = (y.rows / gate.rows.max(1)).max(1);
    unsafe {
        written(y.rows, y.cols, |out| {
            parallel::rows(y.rows, y.cols, |rows| T::dispatch(Rows { x, gate, y, tokens, out, rows }))
        })
    }
}

struct Biased<'a, T> {
    x: Matrix<'a, T>,
    b: Matrix<'a, T>,
    out: Dest<T>,
    rows: Range<usize>,
}

impl<T: Real> Job<T> for Biased<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for r in self.rows {
            unsafe {
                lanes!(V, self.x.cols, |c, n| {
                    let x = V::load_n(self.x.at(r, c), n, T::default());
                    x.add(V::load_n(self.b.at(0, c), n, T::default())).store_n(self.out.at(r, c), n);
                });
            }
        }
    }
}

/// `x + b` with one row `b` for all.
pub(crate) fn biased<T: Real>(x: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    unsafe {
        written(x.rows, x.cols, |out| parallel::rows(x.rows, x.cols, |rows| T::dispatch(Biased { x, b, out, rows })))
    }
}
