//! Functions of single numbers, recorded with their slopes.

use crate::cpu::map::{Activation, activation};
use crate::cpu::matrix::{Held, by_rows};
use crate::cpu::simd::Real;
use crate::record::{Fresh, record1, wanted};
use candle_core::{DType, Result, Tensor};

/// `A(x)` on the CPU, differentiable.
pub(crate) fn elementwise<A: Activation>(name: &'static str, x: &Tensor) -> Result<Tensor> {
    let apply = |x: &Tensor, g: Option<&Tensor>| match x.dtype() {
        DType::F64 => run::<f64, A>(x, g),
        _ => run::<f32, A>(x, g),
    };
    record1(name, [x], apply(x, None)?, move |[x], _, g| Ok([wanted(x, || apply(x, Some(g))?.untracked(g))?]))
}

pub(crate) fn run<T: Real, A: Activation>(x: &Tensor, g: Option<&Tensor>) -> Result<Fresh> {
    let shape = x.dims();
    let (x, g) = (by_rows(x)?, g.map(by_rows).transpose()?);
    let (x, g) = (Held::new(&x), g.as_ref().map(Held::new));
    let g = g.as_ref().map(Held::matrix::<T>).transpose()?;
    Ok(Fresh::cpu(activation::<T, A>(x.matrix()?, g), shape))
}
