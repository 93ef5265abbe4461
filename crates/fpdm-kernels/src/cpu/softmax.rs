//! Softmax of rows.

use super::math::constant;
use super::matrix::{Dest, Matrix, written};
use super::parallel;
use super::simd::{Job, Real, Simd, lanes};
use candle_core::WithDType;
use std::ops::Range;

/// Writes `exp(scale (x - max x))` and returns its sum. `x` and `out` may be the same.
#[inline(always)]
pub(crate) unsafe fn exponentials<V: Simd>(x: *const V::Elem, out: *mut V::Elem, cols: usize, scale: f64) -> V::Elem {
    unsafe {
        let lowest = V::Elem::from_f64(f64::NEG_INFINITY);
        let mut peak = V::splat(lowest);
        lanes!(V, cols, |c, n| {
            peak = peak.max(V::load_n(x.add(c), n, lowest));
        });
        let (peak, scale) = (V::splat(peak.peak()), constant::<V>(scale));
        let mut sum = V::splat(V::Elem::default());
        let full = cols / V::LANES * V::LANES;
        for c in (0..full).step_by(V::LANES) {
            let e = V::load(x.add(c)).sub(peak).mul(scale).exp();
            sum = sum.add(e);
            e.store(out.add(c));
        }
        let mut rest = V::Elem::default();
        if full < cols {
            let e = V::load_n(x.add(full), cols - full, V::Elem::default()).sub(peak).mul(scale).exp();
            e.store_n(out.add(full), cols - full);
            for c in full..cols {
                rest += *out.add(c);
            }
        }
        sum.sum() + rest
    }
}

struct Forward<'a, T> {
    x: Matrix<'a, T>,
    out: Dest<T>,
    rows: Range<usize>,
}

impl<T: Real> Job<T> for Forward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for r in self.rows {
            unsafe {
                let sum = exponentials::<V>(self.x.at(r, 0), self.out.at(r, 0), self.x.cols, 1.);
                scale_row::<V>(self.out.at(r, 0), self.x.cols, T::from_f64(1.) / sum);
            }
        }
    }
}

#[inline(always)]
pub(crate) unsafe fn scale_row<V: Simd>(x: *mut V::Elem, cols: usize, factor: V::Elem) {
    unsafe {
        lanes!(V, cols, |c, n| {
            V::load_n(x.add(c), n, V::Elem::default()).mul(V::splat(factor)).store_n(x.add(c), n);
        });
    }
}

/// The softmax of each row. Columns are adjacent.
pub(crate) fn forward<T: Real>(x: Matrix<'_, T>) -> Vec<T> {
    unsafe {
        written(x.rows, x.cols, |out| parallel::rows(x.rows, x.cols, |rows| T::dispatch(Forward { x, out, rows })))
    }
}

/// Writes `y (g - sum(g y)) factor`, the gradient of a row of softmax. `out` may be `g`.
#[inline(always)]
pub(crate) unsafe fn gradient_row<V: Simd>(
    y: *const V::Elem,
    g: *const V::Elem,
    out: *mut V::Elem,
    cols: usize,
    factor: f64,
) {
    unsafe {
        let zero = V::Elem::default();
        let mut dot = V::splat(zero);
        lanes!(V, cols, |c, n| {
            dot = V::load_n(y.add(c), n, zero).fma(V::load_n(g.add(c), n, zero), dot);
        });
        let (dot, factor) = (V::splat(dot.sum()), constant::<V>(factor));
        lanes!(V, cols, |c, n| {
            let d = V::load_n(g.add(c), n, zero).sub(dot).mul(factor);
            V::load_n(y.add(c), n, zero).mul(d).store_n(out.add(c), n);
        });
    }
}

struct Backward<'a, T> {
    y: Matrix<'a, T>,
    g: Matrix<'a, T>,
    out: Dest<T>,
    rows: Range<usize>,
}

impl<T: Real> Job<T> for Backward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for r in self.rows {
            unsafe { gradient_row::<V>(self.y.at(r, 0), self.g.at(r, 0), self.out.at(r, 0), self.y.cols, 1.) };
        }
    }
}

/// The gradient of the input, from the result `y` and its gradient `g`.
pub(crate) fn backward<T: Real>(y: Matrix<'_, T>, g: Matrix<'_, T>) -> Vec<T> {
    unsafe {
        written(y.rows, y.cols, |out| parallel::rows(y.rows, y.cols, |rows| T::dispatch(Backward { y, g, out, rows })))
    }
}
