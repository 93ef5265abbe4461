//! Times as vectors.

use candle_core::{DType, Result, Tensor};

use super::gpu::{Arg, Source, Variant, gpu, int};
use super::rows::{Out, Rows, device};

const WAVES: Source = Source { name: "waves", text: include_str!("waves.cu"), own: false };

/// Whether there is a kernel: angles in f32, and nobody asks for their gradient.
pub(crate) fn fits(t: &Tensor, frequencies: &Tensor, dtype: DType) -> bool {
    let narrow = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    let tracked = t.track_op() || frequencies.track_op();
    narrow && t.dtype() == DType::F32 && !tracked && frequencies.elem_count() > 0
}

/// Cosines, then sines, of `t` (B) times `frequencies` (F), (B, 2 F).
pub(crate) fn waves(t: &Tensor, frequencies: &Tensor, dtype: DType) -> Result<Tensor> {
    let device = device(t)?;
    let (batch, half) = (t.elem_count(), frequencies.elem_count());
    let (times, frequencies) = (Rows::dense(t)?, Rows::dense(frequencies)?);
    let out = Out::new(&device, dtype, 2 * batch * half)?;
    let mut args = [times.ptr, frequencies.ptr, out.ptr].map(Arg::Ptr).to_vec();
    args.extend([int(half)?, Arg::Long((batch * half) as i64)]);
    let grid = (((batch * half).div_ceil(256), 1, 1), (256, 1, 1));
    gpu(&device)?.launch((&WAVES, "waves", Variant { dtype, vec: 1, steps: 0, head: 0 }), grid, 0, &args)?;
    out.fresh((batch, 2 * half)).untracked(t)
}
