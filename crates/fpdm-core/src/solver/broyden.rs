use candle_core::Tensor;

use super::{Iterates, Solver, iterates};
use crate::fixed_point::samples;
use crate::{FixedPointMap, Result};

/// Broyden's good method with limited memory: a Newton step with an estimate of the inverse Jacobian of `f(z) − z`.
///
/// With `g_n = f(z_n) − z_n`, `s = z_n − z_{n−1}` and `y = g_n − g_{n−1}`, the estimate starts at `H = −I` (a Picard
/// step) and is corrected by Sherman–Morrison to `H + (s − H·y)·sᵀH / (sᵀH·y)`, so that `H·y = s`; then
/// `z_{n+1} = z_n − H·g_n`. `H` is kept as `−I + Σ u·vᵀ`, for every sample on its own, and starts again when `memory`
/// pairs are full: each pair rests on the ones before it, so dropping the oldest makes long solves blow up.
///
/// To autograd the correction to the Picard step is a constant. There is no line search, which would break the law of
/// [`Solver`]: far from a solution, stop on [`Divergence`](crate::Divergence).
///
/// # Reference
///
/// Broyden 1965, method 1; with restarts: Kelley 1995, "Iterative Methods for Linear and Nonlinear Equations", section
/// 7.3; for networks: Bai, Kolter and Koltun 2019, arXiv 1909.01377, section 3.1.3.
///
/// # Cost
///
/// One application an iterate; `2·memory` states in f32 (f64 for f64 maps) and six passes over them; no synchronisation.
///
/// # Shapes
///
/// `(B, ...)`, one estimate a sample; below rank 2 the whole tensor is one sample.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_core::{Broyden, Budget, Result, solve};
///
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.cos()?) };
/// let z0 = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
/// let found = solve(&Broyden::default(), &f, z0, &mut Budget(8))?;
/// assert!((found.z.to_vec1::<f64>()?[0] - 0.739085133215).abs() < 1e-9);
/// # Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broyden {
    /// Rank-one corrections before a restart; 0 is Picard.
    pub memory: usize,
}

impl Default for Broyden {
    fn default() -> Self {
        Self { memory: 10 }
    }
}

impl Solver for Broyden {
    fn iterate<'a>(&'a self, f: &'a dyn FixedPointMap, z0: Tensor) -> Iterates<'a> {
        let mut last: Option<(Tensor, Tensor)> = None;
        let (mut us, mut vs) = (Vec::new(), Vec::new()); // (B, D) each
        iterates(f, z0, move |z, fz| {
            let (image, point) = (samples(fz)?, samples(&z.detach())?);
            let g = (image.detach() - &point)?;
            if let Some((z0, g0)) = last.replace((point.clone(), g.clone()))
                && self.memory > 0
            {
                if us.len() == self.memory {
                    us.clear();
                    vs.clear();
                }
                let (s, y) = ((point - z0)?, (&g - g0)?);
                let hy = (low_rank(&us, &vs, &y)? - &y)?;
                let sh = (low_rank(&vs, &us, &s)? - &s)?;
                us.push((s - hy)?.broadcast_mul(&guarded_recip(&sh, &y)?)?);
                vs.push(sh);
            }
            let next = (image - low_rank(&us, &vs, &g)?)?;
            Ok(next.reshape(z.shape())?.to_dtype(z.dtype())?)
        })
    }
}

/// `Σ u·(vᵀx)` for every sample, `(B, D)`.
fn low_rank(u: &[Tensor], v: &[Tensor], x: &Tensor) -> Result<Tensor> {
    if u.is_empty() {
        return Ok(x.zeros_like()?);
    }
    let (u, v) = (Tensor::stack(u, 1)?, Tensor::stack(v, 1)?); // (B, m, D)
    let weights = v.matmul(&x.unsqueeze(2)?)?; // (B, m, 1)
    Ok(weights.transpose(1, 2)?.contiguous()?.matmul(&u)?.squeeze(1)?)
}

/// `1 / aᵀb`, `(B, 1)`, and 0 where `a` and `b` are as good as orthogonal or nothing: no update instead of a NaN.
fn guarded_recip(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dot = (a * b)?.sum_keepdim(1)?;
    let scale = (a.sqr()?.sum_keepdim(1)?.sqrt()? * b.sqr()?.sum_keepdim(1)?.sqrt()?)?;
    let usable = dot.abs()?.gt(&(scale * 1e-7)?)?;
    Ok(usable.where_cond(&dot.recip()?, &dot.zeros_like()?)?)
}
