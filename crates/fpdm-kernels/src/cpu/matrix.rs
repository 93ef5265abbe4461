//! Borrowed and written matrices: where tensors become pointers.

use super::simd::Real;
use candle_core::{Layout, Result, Storage, StorageRef, Tensor, bail};

/// A strided view of borrowed elements. Construction checks the bounds, so that kernels need not.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a, T: Real> Matrix<'a, T> {
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!((rows - 1) * row_stride + (cols - 1) * col_stride < data.len(), "matrix view out of bounds");
        }
        Self { data, rows, cols, row_stride, col_stride }
    }

    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }

    /// Rows `r0..r0 + rows` of columns `c0..c0 + cols`.
    pub(crate) fn block(self, r0: usize, rows: usize, c0: usize, cols: usize) -> Self {
        assert!(r0 + rows <= self.rows && c0 + cols <= self.cols, "block outside of the matrix");
        let start = (r0 * self.row_stride + c0 * self.col_stride).min(self.data.len());
        Self { data: &self.data[start..], rows, cols, ..self }
    }

    /// The address of an element; reading is in bounds for `row < rows` and `col < cols`.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, col: usize) -> *const T {
        self.data.as_ptr().wrapping_add(row * self.row_stride + col * self.col_stride)
    }
}

/// A row-major matrix being written, possibly by several threads to different places.
#[derive(Clone, Copy)]
pub(crate) struct Dest<T> {
    ptr: *mut T,
    pub(crate) stride: usize,
}

// Only an address; each kernel gives every thread its own rows or columns.
unsafe impl<T: Send> Send for Dest<T> {}
unsafe impl<T: Send> Sync for Dest<T> {}

impl<T> Dest<T> {
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, col: usize) -> *mut T {
        self.ptr.wrapping_add(row * self.stride + col)
    }

    pub(crate) fn offset(&self, row: usize, col: usize) -> Self {
        Self { ptr: self.at(row, col), stride: self.stride }
    }

    pub(crate) fn of(data: &mut [T], stride: usize) -> Self {
        Self { ptr: data.as_mut_ptr(), stride }
    }
}

/// `rows x cols` elements without the cost of zeroing them.
///
/// # Safety
/// `write` must write every element.
pub(crate) unsafe fn written<T>(rows: usize, cols: usize, write: impl FnOnce(Dest<T>)) -> Vec<T> {
    let mut data = Vec::with_capacity(rows * cols);
    write(Dest { ptr: data.as_mut_ptr(), stride: cols });
    unsafe { data.set_len(rows * cols) };
    data
}

/// A CPU tensor under its read lock.
pub(crate) struct Held<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Held<'a> {
    pub(crate) fn new(t: &'a Tensor) -> Self {
        let (storage, layout) = t.storage_and_layout();
        Self { storage, layout }
    }

    /// The tensor as (product of the leading dimensions, last dimension). A rank of one is a single row.
    pub(crate) fn matrix<T: Real>(&self) -> Result<Matrix<'_, T>> {
        let Storage::Cpu(cpu) = &*self.storage else { bail!("a fused CPU kernel got a tensor of another device") };
        let data = &T::cpu_storage_as_slice(cpu)?[self.layout.start_offset()..];
        let (Some((&cols, lead)), Some(row_stride)) = (self.layout.dims().split_last(), row_stride(self.layout)) else {
            bail!("a fused CPU kernel got rows without a common stride: {:?}", self.layout)
        };
        let col_stride = self.layout.stride()[lead.len()];
        Ok(Matrix::new(data, lead.iter().product(), cols, row_stride, col_stride))
    }
}

/// The distance between rows if the leading dimensions can be walked with one.
fn row_stride(layout: &Layout) -> Option<usize> {
    let lead = layout.dims().len().checked_sub(1)?;
    let mut outer: Option<(usize, usize)> = None; // size and stride of what has been merged, from the inside out
    for (&dim, &stride) in layout.dims()[..lead].iter().zip(&layout.stride()[..lead]).rev() {
        outer = match outer {
            _ if dim == 1 => outer,
            None => Some((dim, stride)),
            Some((size, inner)) if stride == size * inner => Some((size * dim, inner)),
            Some(_) => return None,
        };
    }
    Some(outer.map_or(0, |(_, stride)| stride))
}

/// `t` itself if a kernel can walk its rows, a contiguous copy otherwise; without history either way.
pub(crate) fn by_rows(t: &Tensor) -> Result<Tensor> {
    let layout = t.layout();
    let unit = layout.stride().last() == Some(&1) || layout.dims().last() == Some(&1);
    if unit && row_stride(layout).is_some() { Ok(t.detach()) } else { t.detach().contiguous() }
}
