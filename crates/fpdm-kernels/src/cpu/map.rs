//! One element at a time.

use super::math;
use super::matrix::{Dest, Matrix, written};
use super::parallel;
use super::simd::{Job, Real, Simd, lanes};
use std::ops::Range;

/// A function of one number and its slope.
pub(crate) trait Activation: Copy + Send + Sync + 'static {
    fn value<V: Simd>(x: V) -> V;
    fn slope<V: Simd>(x: V) -> V;
}

#[derive(Clone, Copy)]
pub(crate) struct Gelu;
impl Activation for Gelu {
    #[inline(always)]
    fn value<V: Simd>(x: V) -> V {
        math::gelu(x)
    }
    #[inline(always)]
    fn slope<V: Simd>(x: V) -> V {
        math::gelu_slope(x)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Silu;
impl Activation for Silu {
    #[inline(always)]
    fn value<V: Simd>(x: V) -> V {
        math::silu(x)
    }
    #[inline(always)]
    fn slope<V: Simd>(x: V) -> V {
        math::silu_slope(x)
    }
}

struct Row<'a, T, A> {
    x: Matrix<'a, T>,
    g: Option<Matrix<'a, T>>,
    out: Dest<T>,
    rows: Range<usize>,
    activation: std::marker::PhantomData<A>,
}

impl<T: Real, A: Activation> Job<T> for Row<'_, T, A> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        for r in self.rows {
            unsafe {
                lanes!(V, self.x.cols, |c, n| {
                    let x = V::load_n(self.x.at(r, c), n, T::default());
                    let y = match &self.g {
                        None => A::value(x),
                        Some(g) => A::slope(x).mul(V::load_n(g.at(r, c), n, T::default())),
                    };
                    y.store_n(self.out.at(r, c), n);
                });
            }
        }
    }
}

/// `A(x)`, or `g A'(x)` if `g` is given. Columns are adjacent.
pub(crate) fn activation<T: Real, A: Activation>(x: Matrix<'_, T>, g: Option<Matrix<'_, T>>) -> Vec<T> {
    let activation = std::marker::PhantomData::<A>;
    unsafe {
        written(x.rows, x.cols, |out| {
            parallel::rows(x.rows, x.cols, |rows| T::dispatch(Row { x, g, out, rows, activation }))
        })
    }
}
