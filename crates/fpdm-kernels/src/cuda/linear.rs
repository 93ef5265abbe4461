//! Affine maps: the products, and what is joined with them.

use candle_core::{DType, Result, Tensor};

use super::gpu::gpu;
use super::lt::{Epilogue, Factor, Product};
use super::map;
use super::norm;
use super::rows::{Out, Rows, device};
use super::sums;
use crate::record::{Fresh, record1, record2, record3, wanted};

/// `x wᵀ + b`, recorded.
pub(crate) fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = project(x, w, b, None, Gelu::No)?.0;
    record_linear(x, w, b, y)
}

fn record_linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>, y: Fresh) -> Result<Tensor> {
    match b {
        None => record2("linear", [x, w], y, |[x, w], _, g| {
            let dx = wanted(x, || input_gradient(g, w))?;
            Ok([dx, wanted(w, || Ok(weight_gradient(g, x, false)?.0))?])
        }),
        Some(b) => record3("linear", [x, w, b], y, |[x, w, b], _, g| {
            let dx = wanted(x, || input_gradient(g, w))?;
            let (dw, db) = match (w.track_op(), b.track_op()) {
                (false, false) => (None, None),
                (false, true) => (None, Some(sums::rows(g)?)),
                (true, sums) => {
                    let (dw, db) = weight_gradient(g, x, sums)?;
                    (Some(dw), db)
                }
            };
            Ok([dx, dw, db])
        }),
    }
}

/// `gelu(x wᵀ + b)`, recorded.
pub(crate) fn linear_gelu(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    if !(x.track_op() || w.track_op() || b.is_some_and(Tensor::track_op)) {
        return project(x, w, b, None, Gelu::Alone)?.0.untracked(x);
    }
    let (y, argument) = project(x, w, b, None, Gelu::WithArgument)?;
    record_gelu(&record_linear(x, w, b, argument.unwrap_or_else(|| unreachable!("asked for")))?, y)
}

/// `gelu(x wᵀ + r)`, recorded.
pub(crate) fn linear_add_gelu(x: &Tensor, w: &Tensor, r: &Tensor) -> Result<Tensor> {
    if !(x.track_op() || w.track_op() || r.track_op()) {
        return project(x, w, None, Some(r), Gelu::Alone)?.0.untracked(x);
    }
    let (y, argument) = project(x, w, None, Some(r), Gelu::WithArgument)?;
    let argument = argument.unwrap_or_else(|| unreachable!("asked for"));
    let sum = record3("linear_add", [x, w, r], argument, |[x, w, r], _, g| {
        Ok([
            wanted(x, || input_gradient(g, w))?,
            wanted(w, || Ok(weight_gradient(g, x, false)?.0))?,
            wanted(r, || Ok(g.clone()))?,
        ])
    })?;
    record_gelu(&sum, y)
}

fn record_gelu(argument: &Tensor, y: Fresh) -> Result<Tensor> {
    record1("gelu", [argument], y, |[x], _, g| Ok([wanted(x, || map::gelu_gradient(x, g))?]))
}

/// `gelu(a)` and `a = x wᵀ + b + r`, without history.
pub(crate) fn linear_gelu_with_argument(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    r: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (y, argument) = project(x, w, b, r, Gelu::WithArgument)?;
    Ok((y.untracked(x)?, argument.unwrap_or_else(|| unreachable!("asked for")).untracked(x)?))
}

/// `residual + gate (x wᵀ + b)`, recorded.
pub(crate) fn linear_gate_residual(
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    residual: &Tensor,
    gate: &Tensor,
) -> Result<Tensor> {
    map::gate_residual(residual, gate, &linear(x, w, Some(b))?)
}

/// `residual + gate (x wᵀ + b)` and its modulated norm, recorded.
pub(crate) fn linear_gate_residual_norm(
    (x, w, b): (&Tensor, &Tensor, &Tensor),
    (residual, gate): (&Tensor, &Tensor),
    (shift, scale): (&Tensor, &Tensor),
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    norm::gate_residual_norm((residual, gate, &linear(x, w, Some(b))?), (shift, scale), eps)
}

#[derive(Clone, Copy, PartialEq)]
enum Gelu {
    No,
    Alone,
    /// What GELU was applied to is a result too.
    WithArgument,
}

/// `[gelu](x wᵀ + b + add)`, and the argument of GELU if it is asked for.
fn project(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    add: Option<&Tensor>,
    gelu: Gelu,
) -> Result<(Fresh, Option<Fresh>)> {
    let device = device(x)?;
    let gpu = gpu(&device)?;
    let dtype = x.dtype();
    let mut shape = x.dims().to_vec();
    let (x, w) = (Rows::new(x)?, Rows::new(w)?);
    let (bias, add) = (b.map(Rows::dense).transpose()?, add.map(Rows::new).transpose()?);
    if let Some(last) = shape.last_mut() {
        *last = w.rows;
    }
    let elements = x.rows * w.rows;
    let out = Out::new(&device, dtype, elements)?;
    let argument = if gelu == Gelu::WithArgument { Some(Out::new(&device, dtype, elements)?) } else { None };
    let bias_ptr = bias.as_ref().map(|b| b.ptr);
    let plain = Product {
        m: x.rows,
        n: w.rows,
        k: x.width,
        left: Factor { ptr: x.ptr, stride: x.stride, transposed: false },
        right: Factor { ptr: w.ptr, stride: w.stride, transposed: true },
        out: out.ptr,
        stride: w.rows,
        dtype,
        out_dtype: dtype,
        add: add.as_ref().map(|a| (a.ptr, a.stride)),
        epilogue: bias_ptr.map_or(Epilogue::Nothing, Epilogue::Bias),
    };
    // The library's GELU is an approximation that f32 can tell from ours.
    if gelu != Gelu::No && dtype != DType::F32 {
        let epilogue = Epilogue::Gelu { bias: bias_ptr, argument: argument.as_ref().map(|a| a.ptr) };
        if gpu.lt.multiply(&gpu.stream, &Product { epilogue, ..plain })? {
            return Ok((out.fresh(shape.clone()), argument.map(|a| a.fresh(shape))));
        }
    }
    // Otherwise the argument of GELU is written first.
    let first = argument.as_ref().map_or(out.ptr, |a| a.ptr);
    let plain = Product { out: first, ..plain };
    if !gpu.lt.multiply(&gpu.stream, &plain)? {
        let bare = Product { epilogue: Epilogue::Nothing, ..plain };
        if !gpu.lt.multiply(&gpu.stream, &bare)? {
            candle_core::bail!("linear: cuBLASLt has no algorithm for {bare:?}")
        }
        if let Some(bias) = bias_ptr {
            map::add_row(&gpu, dtype, first, bias, (x.rows, w.rows))?;
        }
    }
    if gelu != Gelu::No {
        map::gelu_into(&gpu, dtype, first, out.ptr, elements)?;
    }
    Ok((out.fresh(shape.clone()), argument.map(|a| a.fresh(shape))))
}

/// `g w`
pub(crate) fn input_gradient(g: &Tensor, w: &Tensor) -> Result<Tensor> {
    let device = device(g)?;
    let gpu = gpu(&device)?;
    let mut shape = g.dims().to_vec();
    let (rows, w) = (Rows::new(g)?, Rows::new(w)?);
    if let Some(last) = shape.last_mut() {
        *last = w.width;
    }
    let out = Out::new(&device, g.dtype(), rows.rows * w.width)?;
    let product = Product {
        m: rows.rows,
        n: w.width,
        k: w.rows,
        left: Factor { ptr: rows.ptr, stride: rows.stride, transposed: false },
        right: Factor { ptr: w.ptr, stride: w.stride, transposed: false },
        out: out.ptr,
        stride: w.width,
        dtype: g.dtype(),
        out_dtype: g.dtype(),
        add: None,
        epilogue: Epilogue::Nothing,
    };
    if !gpu.lt.multiply(&gpu.stream, &product)? {
        candle_core::bail!("linear, gradient of x: cuBLASLt has no algorithm for {product:?}")
    }
    out.fresh(shape).untracked(g)
}

/// `gᵀ x`, and the sums of the rows of `g` if they are asked for.
pub(super) fn weight_gradient(g: &Tensor, x: &Tensor, sums: bool) -> Result<(Tensor, Option<Tensor>)> {
    let device = device(g)?;
    let gpu = gpu(&device)?;
    let dtype = g.dtype();
    let (rows, x) = (Rows::new(g)?, Rows::new(x)?);
    let out = Out::new(&device, dtype, rows.width * x.width)?;
    let bare = Product {
        m: rows.width,
        n: x.width,
        k: x.rows,
        left: Factor { ptr: rows.ptr, stride: rows.stride, transposed: true },
        right: Factor { ptr: x.ptr, stride: x.stride, transposed: false },
        out: out.ptr,
        stride: x.width,
        dtype,
        out_dtype: dtype,
        add: None,
        epilogue: Epilogue::Nothing,
    };
    let shape = (rows.width, x.width);
    if !gpu.lt.multiply(&gpu.stream, &bare)? {
        candle_core::bail!("linear, gradient of w: cuBLASLt has no algorithm for {bare:?}")
    }
    // The library can sum in the same pass, but in the narrow type.
    let bias = if sums { Some(sums::rows(g)?) } else { None };
    Ok((out.fresh(shape).untracked(g)?, bias))
}

/// Adds `gᵀ x` to the columns of `sum` (O, I) in f32 from `column` on, in place.
pub(crate) fn add_weight_gradient(sum: &Tensor, g: &Tensor, x: &Tensor, column: usize) -> Result<()> {
    let gpu = gpu(&device(g)?)?;
    let (rows, x, sum) = (Rows::new(g)?, Rows::new(x)?, Rows::dense(sum)?);
    let out = sum.ptr + (column * size_of::<f32>()) as u64;
    let product = Product {
        m: rows.width,
        n: x.width,
        k: x.rows,
        left: Factor { ptr: rows.ptr, stride: rows.stride, transposed: true },
        right: Factor { ptr: x.ptr, stride: x.stride, transposed: false },
        out,
        stride: sum.stride,
        dtype: g.dtype(),
        out_dtype: DType::F32,
        add: Some((out, sum.stride)),
        epilogue: Epilogue::Nothing,
    };
    if !gpu.lt.multiply(&gpu.stream, &product)? {
        candle_core::bail!("linear, sum of gradients of w: cuBLASLt has no algorithm for {product:?}")
    }
    Ok(())
}
