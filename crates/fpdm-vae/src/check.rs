//! What every codec asks of its arguments.

use candle_core::Tensor;
use fpdm_core::{Error, Result};

/// `t` is `(B, channels, H, W)` with sides that are positive multiples of `factor`.
pub(crate) fn pictures(what: &str, t: &Tensor, channels: usize, factor: usize) -> Result<()> {
    let fits = match t.dims() {
        &[b, c, h, w] => b > 0 && c == channels && h > 0 && w > 0 && h % factor == 0 && w % factor == 0,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let sides = match factor {
        1 => "H and W positive".to_owned(),
        f => format!("H and W positive multiples of {f}; crop or pad the picture"),
    };
    Err(Error::Shape {
        what: what.to_owned(),
        expected: format!("(B, {channels}, H, W) with B, {sides}"),
        got: format!("{:?}", t.dims()),
    })
}

/// `t` holds floating point numbers.
pub(crate) fn same_type(what: &str, t: &Tensor) -> Result<()> {
    if t.dtype().is_float() {
        return Ok(());
    }
    Err(Error::Shape {
        what: what.to_owned(),
        expected: "a floating point type; use to_dtype".to_owned(),
        got: format!("{:?}", t.dtype()),
    })
}
