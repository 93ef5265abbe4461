//! 8-bit pictures and tensors.

use candle_core::{D, DType, Device, Tensor};
use fpdm_core::{Error, Result};

/// An 8-bit RGB picture, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl Picture {
    /// From `3·width·height` bytes: red, green, blue, from the top left to the right and down.
    ///
    /// # Errors
    /// [`Error::Shape`] if a side is 0 or the bytes are more or fewer.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(3)).filter(|n| *n > 0);
        if bytes != Some(data.len()) {
            let expected = format!("3·{width}·{height} bytes and positive sides");
            return Err(Error::Shape { what: "Picture::new".into(), expected, got: format!("{} bytes", data.len()) });
        }
        Ok(Self { width, height, data })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Red, green, blue, from the top left to the right and down.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The part `width` by `height` from (`left`, `top`) on.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is empty or leaves the picture.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Result<Self> {
        let inside = |from: usize, len: usize, size: usize| from.checked_add(len).is_some_and(|end| end <= size);
        if !inside(left, width, self.width) || !inside(top, height, self.height) {
            let expected = format!("a part of {}x{}", self.width, self.height);
            let got = format!("{width}x{height} from ({left}, {top})");
            return Err(Error::Shape { what: "Picture::crop".into(), expected, got });
        }
        let rows = self.data.chunks_exact(3 * self.width).skip(top).take(height);
        Self::new(width, height, rows.flat_map(|row| &row[3 * left..3 * (left + width)]).copied().collect())
    }
}

/// `(1, 3, H, W)` in [-1, 1]: `x/127.5 - 1`.
///
/// # Errors
/// Those of Candle.
pub fn to_tensor(picture: &Picture, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = (1, picture.height, picture.width, 3);
    let bytes = Tensor::from_slice(&picture.data, shape, &Device::Cpu)?;
    let x = bytes.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?;
    Ok(((x / 127.5)? - 1.)?.to_dtype(dtype)?.to_device(device)?)
}

/// The pictures of `(B, 3, H, W)`: `127.5·x + 127.5`, cut to [0, 255] and rounded. A single channel becomes grey.
///
/// # Errors
/// [`Error::Shape`] if the tensor is no batch of pictures, [`Error::NonFinite`] if it holds NaN.
pub fn from_tensor(t: &Tensor) -> Result<Vec<Picture>> {
    let (height, width) = match *t.dims() {
        [_, 1 | 3, h, w] if h > 0 && w > 0 && t.dtype().is_float() => (h, w),
        _ => {
            let got = format!("{:?} of {:?}", t.dims(), t.dtype());
            let expected = "(B, 3, H, W) or (B, 1, H, W) of floating point numbers".into();
            return Err(Error::Shape { what: "from_tensor".into(), expected, got });
        }
    };
    let t = t.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    if t.sum_all()?.to_scalar::<f32>()?.is_nan()
        && t.ne(&t)?.to_dtype(DType::F32)?.sum(D::Minus1)?.max_all()?.to_scalar::<f32>()? > 0.
    {
        return Err(Error::NonFinite { at: "a picture".into(), iter: 0 });
    }
    let t = t.broadcast_as((t.dims()[0], 3, height, width))?;
    let bytes = t.affine(127.5, 127.5)?.clamp(0f32, 255f32)?.round()?.to_dtype(DType::U8)?;
    let bytes = bytes.permute((0, 2, 3, 1))?.contiguous()?;
    (0..bytes.dims()[0]).map(|i| Picture::new(width, height, bytes.get(i)?.flatten_all()?.to_vec1()?)).collect()
}
