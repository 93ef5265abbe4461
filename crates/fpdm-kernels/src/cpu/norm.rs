//! Layer norm with the modulation of its result.

use super::math::constant;
use super::matrix::{Dest, Matrix, written};
use super::parallel;
use super::simd::{Job, Real, Simd, lanes};
use super::sums;
use candle_core::WithDType;
use std::ops::Range;

/// Mean and reciprocal deviation of a row.
#[inline(always)]
unsafe fn moments<V: Simd>(x: *const V::Elem, cols: usize, eps: f64) -> (V, V) {
    let mut sum = V::splat(V::Elem::default());
    unsafe {
        lanes!(V, cols, |c, n| {
            sum = sum.add(V::load_n(x.add(c), n, V::Elem::default()));
        });
        let mean = sum.sum() / V::Elem::from_f64(cols as f64);
        let mut squares = V::splat(V::Elem::default());
        lanes!(V, cols, |c, n| {
            // The lanes past the end hold the mean, so that they add nothing.
            let d = V::load_n(x.add(c), n, mean).sub(V::splat(mean));
            squares = d.fma(d, squares);
        });
        let variance = squares.sum().to_f64() / cols as f64;
        (V::splat(mean), constant(1. / (variance + eps).sqrt()))
    }
}

struct Forward<'a, T> {
    x: Matrix<'a, T>,
    shift: Matrix<'a, T>,
    scale: Matrix<'a, T>,
    tokens: usize,
    eps: f64,
    out: Dest<T>,
    rows: Range<usize>,
}

impl<T: Real> Job<T> for Forward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for r in self.rows {
            let group = r / self.tokens;
            unsafe {
                let (mean, inverse) = moments::<V>(self.x.at(r, 0), self.x.cols, self.eps);
                lanes!(V, self.x.cols, |c, n| {
                    let unit = V::load_n(self.x.at(r, c), n, T::default()).sub(mean).mul(inverse);
                    let scale = V::load_n(self.scale.at(group, c), n, T::default()).add(constant(1.));
                    let shift = V::load_n(self.shift.at(group, c), n, T::default());
                    unit.fma(scale, shift).store_n(self.out.at(r, c), n);
                });
            }
        }
    }
}

/// `norm(x) (1 + scale) + shift`, one row of `shift` and `scale` for each group of rows of `x`. Columns are adjacent.
pub(crate) fn forward<T: Real>(x: Matrix<'_, T>, shift: Matrix<'_, T>, scale: Matrix<'_, T>, eps: f64) -> Vec<T> {
    let tokens = (x.rows / shift.rows.max(1)).max(1);
    unsafe {
        written(x.rows, x.cols, |out| {
            parallel::rows(x.rows, x.cols, |rows| T::dispatch(Forward { x, shift, scale, tokens, eps, out, rows }))
        })
    }
}

struct Backward<'a, T> {
    x: Matrix<'a, T>,
    scale: Matrix<'a, T>,
    g: Matrix<'a, T>,
    tokens: usize,
    eps: f64,
    dx: Dest<T>,
    /// Sums of the shift's gradient and, `cols` further on, of the scale's.
    sums: Dest<T>,
    rows: Range<usize>,
}

impl<T: Real> Job<T> for Backward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let Self { x, scale, g, tokens, eps, dx, sums, rows } = self;
        let (cols, zero) = (x.cols, T::default());
        for r in rows {
            let group = r / tokens;
            unsafe {
                let (mean, inverse) = moments::<V>(x.at(r, 0), cols, eps);
                let (mut total, mut along) = (V::splat(zero), V::splat(zero));
                lanes!(V, cols, |c, n| {
                    let unit = V::load_n(x.at(r, c), n, zero).sub(mean).mul(inverse);
                    let up = V::load_n(g.at(r, c), n, zero);
                    let h = up.mul(V::load_n(scale.at(group, c), n, zero).add(constant(1.)));
                    total = total.add(h);
                    along = h.fma(unit, along);
                    let (shift, scale) = (sums.at(0, c), sums.at(0, cols + c));
                    V::load_n(shift, n, zero).add(up).store_n(shift, n);
                    up.fma(unit, V::load_n(scale, n, zero)).store_n(scale, n);
                });
                let share = T::from_f64(1. / cols as f64);
                let (total, along) = (V::splat(total.sum() * share), V::splat(along.sum() * share));
                lanes!(V, cols, |c, n| {
                    let unit = V::load_n(x.at(r, c), n, zero).sub(mean).mul(inverse);
                    let h =
                        V::load_n(g.at(r, c), n, zero).mul(V::load_n(scale.at(group, c), n, zero).add(constant(1.)));
                    h.sub(total).sub(unit.mul(along)).mul(inverse).store_n(dx.at(r, c), n);
                });
            }
        }
    }
}

/// The gradients of `x` (rows, cols), and of `shift` and `scale` side by side (groups, 2 cols).
pub(crate) fn backward<T: Real>(
    x: Matrix<'_, T>,
    scale: Matrix<'_, T>,
    g: Matrix<'_, T>,
    eps: f64,
) -> (Vec<T>, Vec<T>) {
    let groups = scale.rows;
    let tokens = (x.rows / groups.max(1)).max(1);
    let mut modulation = Vec::new();
    let dx = unsafe {
        written(x.rows, x.cols, |dx| {
            modulation = sums::partial(groups, tokens, 2 * x.cols, |rows, sums| {
                T::dispatch(Backward { x, scale, g, tokens, eps, dx, sums, rows })
            });
        })
    };
    (dx, modulation)
}
