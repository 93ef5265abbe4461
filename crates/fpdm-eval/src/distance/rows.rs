//! Features as rows of numbers, and products between two sets of them a block at a time.

use candle_core::{DType, Device, Tensor};
use fpdm_core::{Error, Result};

/// Numbers of a block of products: 32 MB of them at a time.
const BLOCK: usize = 4 << 20;

/// `(N, D)` in f64 on the CPU, checked.
pub(super) struct Rows {
    pub(super) tensor: Tensor,
    pub(super) count: usize,
    pub(super) width: usize,
}

impl Rows {
    /// At least `least` rows of finite numbers; `what` is for messages.
    pub(super) fn new(what: &str, features: &Tensor, least: usize) -> Result<Self> {
        let (count, width) = match *features.dims() {
            [n, d] if n >= least && d > 0 && features.dtype().is_float() => (n, d),
            _ => {
                return Err(Error::Shape {
                    what: what.to_owned(),
                    expected: format!("(N, D) of floating point numbers with N at least {least}"),
                    got: format!("{:?} of {:?}", features.dims(), features.dtype()),
                });
            }
        };
        let tensor = features.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.contiguous()?;
        if !tensor.sqr()?.sum_all()?.to_scalar::<f64>()?.is_finite() {
            return Err(Error::NonFinite { at: what.to_owned(), iter: 0 });
        }
        Ok(Self { tensor, count, width })
    }

    /// Refuses features of another network.
    pub(super) fn like(&self, what: &str, other: &Self) -> Result<()> {
        if self.width == other.width {
            return Ok(());
        }
        Err(Error::shape(
            format!("{what}: features of both sets"),
            (other.count, self.width),
            (other.count, other.width),
        ))
    }

    /// All numbers, row by row.
    pub(super) fn numbers(&self) -> Result<Vec<f64>> {
        Ok(self.tensor.flatten_all()?.to_vec1()?)
    }
}

/// `visit(i, products of row i of a and those behind it with all rows of b)`, block by block.
pub(super) fn blocks(a: &Rows, b: &Rows, mut visit: impl FnMut(usize, Vec<f64>) -> Result<()>) -> Result<()> {
    let turned = b.tensor.t()?;
    let step = (BLOCK / b.count).clamp(1, a.count);
    for start in (0..a.count).step_by(step) {
        let block = a.tensor.narrow(0, start, step.min(a.count - start))?.matmul(&turned)?;
        visit(start, block.flatten_all()?.to_vec1()?)?;
    }
    Ok(())
}

/// `visit(i, products of row i of a with all rows of b)`, row by row.
pub(super) fn products(a: &Rows, b: &Rows, mut visit: impl FnMut(usize, &mut [f64])) -> Result<()> {
    blocks(a, b, |start, mut block| {
        for (i, row) in block.chunks_exact_mut(b.count).enumerate() {
            visit(start + i, row);
        }
        Ok(())
    })
}

/// `visit(i, squared distances of row i of a to all rows of b)`, row by row, none below 0. Exact to the rounding of the
/// rows' own squares.
pub(super) fn squared_distances(a: &Rows, b: &Rows, mut visit: impl FnMut(usize, &[f64])) -> Result<()> {
    let squares = |rows: &Rows| -> Result<Vec<f64>> { Ok(rows.tensor.sqr()?.sum(1)?.to_vec1()?) };
    let (of_a, of_b) = (squares(a)?, squares(b)?);
    products(a, b, |i, row| {
        for (x, of_b) in row.iter_mut().zip(&of_b) {
            *x = (of_a[i] + of_b - 2. * *x).max(0.);
        }
        visit(i, row);
    })
}
