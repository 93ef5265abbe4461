//! The operations of a diffusion transformer, composed of differentiable Candle operations.
#![allow(missing_docs)]
use candle_core::*;
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = x.broadcast_matmul(&w.t()?.contiguous()?).or_else(|_| x.matmul(&w.t()?))?;
    match b {
        Some(b) => y.broadcast_add(b),
        None => Ok(y),
    }
}
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let u = ((x.sqr()? * x)?.affine(0.044715, 0.)? + x)?.affine((2f64 / std::f64::consts::PI).sqrt(), 0.)?;
    (x * u.tanh()?.affine(0.5, 0.5)?)
}
pub fn linear_gelu(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    gelu(&linear(x, w, b)?)
}
pub fn linear_add_gelu(x: &Tensor, w: &Tensor, r: &Tensor) -> Result<Tensor> {
    gelu(&(linear(x, w, None)? + r)?)
}
pub fn gate_residual(x: &Tensor, g: &Tensor, y: &Tensor) -> Result<Tensor> {
    x + y.broadcast_mul(&g.unsqueeze(1)?)?
}
pub fn linear_gate_residual(x: &Tensor, w: &Tensor, b: &Tensor, r: &Tensor, g: &Tensor) -> Result<Tensor> {
    gate_residual(r, g, &linear(x, w, Some(b))?)
}
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.silu()
}
pub fn layer_norm_modulate(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let d = x.broadcast_sub(&x.mean_keepdim(2)?)?;
    let n = d.broadcast_div(&(d.sqr()?.mean_keepdim(2)? + eps)?.sqrt()?)?;
    n.broadcast_mul(&(scale.unsqueeze(1)? + 1.)?)?.broadcast_add(&shift.unsqueeze(1)?)
}
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, d3) = qkv.dims3()?;
    let d = d3 / 3;
    let hd = d / heads;
    let p = |i: usize| -> Result<Tensor> {
        qkv.narrow(2, i * d, d)?.reshape((b, t, heads, hd))?.transpose(1, 2)?.contiguous()
    };
    let s = (p(0)?.matmul(&p(1)?.t()?.contiguous()?)? * (1. / (hd as f64).sqrt()))?;
    let e = s.broadcast_sub(&s.max_keepdim(3)?)?.exp()?;
    let a = e.broadcast_div(&e.sum_keepdim(3)?)?;
    a.matmul(&p(2)?)?.transpose(1, 2)?.reshape((b, t, d))
}
