//! Pooling over 3×3 pixels.

use candle_core::Tensor;
use fpdm_core::Result;

/// The largest of 3×3 pixels. `x` is not negative, so that zeros around it change nothing.
pub(super) fn largest(x: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let x = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    Ok(x.contiguous()?.max_pool2d_with_stride(3, stride)?)
}

/// The average of 3×3 pixels around each, of those within the picture.
pub(super) fn average(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let mut sum = x.clone();
    for dim in [2, 3] {
        let len = sum.dims()[dim];
        let padded = sum.pad_with_zeros(dim, 1, 1)?;
        sum = ((padded.narrow(dim, 0, len)? + sum)? + padded.narrow(dim, 2, len)?)?;
    }
    // How many pixels of three are within, along one side.
    let seen = |len: usize| {
        (0..len).map(move |i| (1 + usize::from(i > 0) + usize::from(i + 1 < len)) as f32).collect::<Vec<_>>()
    };
    let (rows, columns) = (seen(height), seen(width));
    let inverse: Vec<f32> = rows.iter().flat_map(|r| columns.iter().map(move |c| 1. / (r * c))).collect();
    let inverse = Tensor::from_vec(inverse, (1, 1, height, width), x.device())?.to_dtype(x.dtype())?;
    Ok(sum.broadcast_mul(&inverse)?)
}
