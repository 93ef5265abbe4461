//! Arguments are checked here, once, with messages that name the operation, the argument and both sides.

use candle_core::{DType, Result, Tensor, bail};

/// Collects what all arguments of an operation must agree on.
pub(crate) struct Check<'a> {
    op: &'static str,
    like: (&'static str, &'a Tensor),
}

impl<'a> Check<'a> {
    /// `t` sets the device and the type, which must be a floating-point one with kernels.
    pub(crate) fn new(op: &'static str, name: &'static str, t: &'a Tensor) -> Result<Self> {
        if !matches!(t.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
            bail!("{op}: `{name}` must be f32, f64, f16 or bf16, got {:?}", t.dtype())
        }
        Ok(Self { op, like: (name, t) })
    }

    /// `t` has this shape, and the device and type of the first argument.
    pub(crate) fn shape(&self, name: &str, t: &Tensor, expected: &[usize]) -> Result<()> {
        let (op, (like, first)) = (self.op, self.like);
        if t.dims() != expected {
            bail!("{op}: `{name}` must have shape {expected:?}, got {:?}", t.dims())
        }
        if t.dtype() != first.dtype() {
            bail!("{op}: `{name}` must be {:?} like `{like}`, got {:?}", first.dtype(), t.dtype())
        }
        if !t.device().same_device(first.device()) {
            let (expected, got) = (first.device().location(), t.device().location());
            bail!("{op}: `{name}` must be on {expected:?} like `{like}`, got {got:?}")
        }
        Ok(())
    }

    /// The last dimension of a tensor of rank one or more.
    pub(crate) fn last(&self, name: &str, t: &Tensor) -> Result<usize> {
        match t.dims().last() {
            Some(&d) => Ok(d),
            None => bail!("{}: `{name}` must have at least one dimension, got a scalar", self.op),
        }
    }

    /// The sizes of a matrix.
    pub(crate) fn two(&self, name: &str, t: &Tensor) -> Result<(usize, usize)> {
        match *t.dims() {
            [a, b] => Ok((a, b)),
            _ => bail!("{}: `{name}` must have two dimensions, got {:?}", self.op, t.dims()),
        }
    }

    /// The sizes of a batch of sequences of vectors.
    pub(crate) fn three(&self, name: &str, t: &Tensor) -> Result<(usize, usize, usize)> {
        match *t.dims() {
            [a, b, c] => Ok((a, b, c)),
            _ => bail!("{}: `{name}` must have three dimensions (B, T, D), got {:?}", self.op, t.dims()),
        }
    }
}

/// The shape of a product of `x` (.., I) with the weight `w` (O, I): (.., O).
pub(crate) fn linear(check: &Check<'_>, x: &Tensor, w: &Tensor) -> Result<Vec<usize>> {
    let inner = check.last("x", x)?;
    let (outer, _) = check.two("w", w)?;
    check.shape("w", w, &[outer, inner])?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outer;
    }
    Ok(shape)
}
