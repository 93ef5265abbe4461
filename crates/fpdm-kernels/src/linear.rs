//! The affine map, with its gradients as matrix products.

use crate::check::{self, Check};
use crate::cpu::epilogue::{Affine, Epilogue, Identity};
use crate::cpu::gemm::gemm;
use crate::cpu::matrix::{Held, Matrix, by_rows, written};
use crate::cpu::simd::Real;
use crate::cpu::sums::by_group;
use crate::dispatch::{Route, by_dtype, route, widened};
use crate::record::{Fresh, record2, record3, wanted};
use candle_core::{Result, Tensor};

/// `x wᵀ + b`.
///
/// `x` (.., I), `w` (O, I), `b` (O) → (.., O). `w` may be a view of a wider matrix, as from `narrow`: it is not copied.
/// Differentiable in all arguments.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    check_arguments("linear", x, w, b)?;
    match (route(x), b) {
        #[cfg(feature = "cuda")]
        (Route::Cuda, _) => crate::cuda::linear(x, w, b),
        (Route::Composed, _) => composed(x, w, b),
        (Route::Widened, None) => widened([x, w], |[x, w]| linear(&x, &w, None)),
        (Route::Widened, Some(b)) => widened([x, w, b], |[x, w, b]| linear(&x, &w, Some(&b))),
        (Route::Cpu, None) => {
            let y = project::<false>(x, w, None, None)?;
            record2("linear", [x, w], y, |[x, w], _, g| {
                Ok([wanted(x, || input_gradient(g, w))?, wanted(w, || weight_gradient(g, x))?])
            })
        }
        (Route::Cpu, Some(b)) => {
            let y = project::<false>(x, w, Some(b), None)?;
            record3("linear", [x, w, b], y, |[x, w, b], _, g| {
                Ok([
                    wanted(x, || input_gradient(g, w))?,
                    wanted(w, || weight_gradient(g, x))?,
                    wanted(b, || bias_gradient(g))?,
                ])
            })
        }
    }
}

/// [`linear`] in candle's operations.
///
/// # Errors
/// If candle cannot multiply or broadcast the arguments.
pub fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (outer, inner) = w.dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outer;
    }
    // Both copies are for the GPU libraries, which know fewer strides than we allow.
    let rows = x.contiguous()?.reshape(((), inner))?;
    let y = rows.matmul(&w.contiguous()?.t()?)?.reshape(shape)?;
    match b {
        Some(b) => y.broadcast_add(b),
        None => Ok(y),
    }
}

/// The checks that every function of this family shares; returns the shape of the result.
pub(crate) fn check_arguments(op: &'static str, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Vec<usize>> {
    let check = Check::new(op, "x", x)?;
    let shape = check::linear(&check, x, w)?;
    if let Some(b) = b {
        check.shape("b", b, &shape[shape.len() - 1..])?;
    }
    Ok(shape)
}

/// `[gelu](x wᵀ + b + full)` on the CPU.
pub(crate) fn project<const GELU: bool>(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    full: Option<&Tensor>,
) -> Result<Fresh> {
    fn run<T: Real, const GELU: bool>(
        x: &Tensor,
        w: &Tensor,
        b: Option<&Tensor>,
        full: Option<&Tensor>,
    ) -> Result<Fresh> {
        let (b, full) = (b.map(by_rows).transpose()?, full.map(by_rows).transpose()?);
        let (b, full) = (b.as_ref().map(Held::new), full.as_ref().map(Held::new));
        let bias = b.as_ref().map(Held::matrix::<T>).transpose()?;
        let full = full.as_ref().map(Held::matrix::<T>).transpose()?;
        product(x, w, Affine::<T, GELU> { bias, full })
    }
    match x.dtype() {
        candle_core::DType::F64 => run::<f64, GELU>(x, w, b, full),
        _ => run::<f32, GELU>(x, w, b, full),
    }
}

/// `epilogue(x wᵀ)` with the shape of `x` but for the last dimension.
pub(crate) fn product<T: Real, E: Epilogue<T>>(x: &Tensor, w: &Tensor, epilogue: E) -> Result<Fresh> {
    let x = by_rows(x)?;
    let (x, w) = (Held::new(&x), (Held::new(w), x.dims()));
    let mut shape = w.1.to_vec();
    let (x, w) = (x.matrix::<T>()?, w.0.matrix::<T>()?);
    if let Some(last) = shape.last_mut() {
        *last = w.rows;
    }
    Ok(Fresh::cpu(multiplied(x, w.t(), epilogue), shape))
}

fn multiplied<T: Real, E: Epilogue<T>>(a: Matrix<'_, T>, b: Matrix<'_, T>, epilogue: E) -> Vec<T> {
    unsafe { written(a.rows, b.cols, |c| gemm(a, b, c, epilogue)) }
}

/// `g w`
pub(crate) fn input_gradient(g: &Tensor, w: &Tensor) -> Result<Tensor> {
    fn run<T: Real>(g: &Tensor, w: &Tensor) -> Result<Fresh> {
        let rows = by_rows(g)?;
        let (held, weight) = (Held::new(&rows), Held::new(w));
        let (a, b) = (held.matrix::<T>()?, weight.matrix::<T>()?);
        let mut shape = g.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = b.cols;
        }
        Ok(Fresh::cpu(multiplied(a, b, Identity), shape))
    }
    by_dtype!(g, run(g, w))?.untracked(g)
}

/// `gᵀ x`
pub(crate) fn weight_gradient(g: &Tensor, x: &Tensor) -> Result<Tensor> {
    fn run<T: Real>(g: &Tensor, x: &Tensor) -> Result<Fresh> {
        let (g, x) = (by_rows(g)?, by_rows(x)?);
        let (g, x) = (Held::new(&g), Held::new(&x));
        let (g, x) = (g.matrix::<T>()?, x.matrix::<T>()?);
        Ok(Fresh::cpu(multiplied(g.t(), x, Identity), (g.cols, x.cols)))
    }
    by_dtype!(g, run(g, x))?.untracked(g)
}

/// The sum of `g` over all but the last dimension.
pub(crate) fn bias_gradient(g: &Tensor) -> Result<Tensor> {
    fn run<T: Real>(g: &Tensor) -> Result<Fresh> {
        let g = by_rows(g)?;
        let g = Held::new(&g);
        let g = g.matrix::<T>()?;
        Ok(Fresh::cpu(by_group(g, None, 1), g.cols))
    }
    by_dtype!(g, run(g))?.untracked(g)
}
