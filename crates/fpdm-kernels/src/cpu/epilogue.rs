//! What happens to a product while its tile is still in the first cache.

use super::math::gelu;
use super::matrix::Matrix;
use super::simd::{Real, Simd};

/// `acc` holds `n` valid lanes of the product at (`row`, `col`).
pub(crate) trait Epilogue<T: Real>: Copy + Send + Sync {
    /// Nothing to do: the tile is left as it is.
    const IDENTITY: bool = false;
    /// # Safety
    /// (`row`, `col..col + n`) lies in the product and `n <= LANES`.
    unsafe fn apply<V: Simd<Elem = T>>(&self, acc: V, row: usize, col: usize, n: usize) -> V;
}

#[derive(Clone, Copy)]
pub(crate) struct Identity;

impl<T: Real> Epilogue<T> for Identity {
    const IDENTITY: bool = true;
    #[inline(always)]
    unsafe fn apply<V: Simd<Elem = T>>(&self, acc: V, _: usize, _: usize, _: usize) -> V {
        acc
    }
}

/// `[gelu](acc + bias + full)`: the bias is a vector of the columns, `full` has the size of the product.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a, T, const GELU: bool> {
    pub(crate) bias: Option<Matrix<'a, T>>,
    pub(crate) full: Option<Matrix<'a, T>>,
}

impl<T: Real, const GELU: bool> Epilogue<T> for Affine<'_, T, GELU> {
    #[inline(always)]
    unsafe fn apply<V: Simd<Elem = T>>(&self, acc: V, row: usize, col: usize, n: usize) -> V {
        let mut acc = acc;
        if let Some(bias) = &self.bias {
            acc = acc.add(unsafe { V::load_n(bias.at(0, col), n, T::default()) });
        }
        if let Some(full) = &self.full {
            acc = acc.add(unsafe { V::load_n(full.at(row, col), n, T::default()) });
        }
        if GELU { gelu(acc) } else { acc }
    }
}

/// `residual + gate (acc + bias)` with one row of `gate` for `tokens` rows of the product.
#[derive(Clone, Copy)]
pub(crate) struct Gated<'a, T> {
    pub(crate) bias: Matrix<'a, T>,
    pub(crate) residual: Matrix<'a, T>,
    pub(crate) gate: Matrix<'a, T>,
    pub(crate) tokens: usize,
}

impl<T: Real> Epilogue<T> for Gated<'_, T> {
    #[inline(always)]
    unsafe fn apply<V: Simd<Elem = T>>(&self, acc: V, row: usize, col: usize, n: usize) -> V {
        unsafe {
            let bias = V::load_n(self.bias.at(0, col), n, T::default());
            let gate = V::load_n(self.gate.at(row / self.tokens, col), n, T::default());
            let residual = V::load_n(self.residual.at(row, col), n, T::default());
            acc.add(bias).fma(gate, residual)
        }
    }
}

/// `acc` times a factor for each row.
#[derive(Clone, Copy)]
pub(crate) struct ScaleRows<'a, T>(pub(crate) &'a [T]);

impl<T: Real> Epilogue<T> for ScaleRows<'_, T> {
    #[inline(always)]
    unsafe fn apply<V: Simd<Elem = T>>(&self, acc: V, row: usize, _: usize, _: usize) -> V {
        acc.mul(V::splat(self.0[row]))
    }
}
