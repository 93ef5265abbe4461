//! Sums over rows: gradients of biases and gates; and along them: residuals.

use candle_core::{CudaDevice, DType, Result, Tensor};

use super::gpu::{Arg, Source, Variant, gpu, int};
use super::rows::{Out, Rows, address, device, vec};
use crate::record::{Fresh, record1, wanted};

/// Most rows of a table for [`lookup`], a grid's most blocks in its second dimension.
pub(crate) const LOOKUPS: usize = 65_535;

const SUMS: Source = Source { name: "sums", text: include_str!("sums.cu"), own: false };

/// The sum of `g` over all but the last dimension.
pub(crate) fn rows(g: &Tensor) -> Result<Tensor> {
    let rows = Rows::dense(g)?;
    let device = device(g)?;
    let vec = vec(g.dtype(), &[&rows]);
    let out = partial(&device, (g.dtype(), vec), [rows.ptr, 0, 0, 0], (1, rows.rows, rows.width), 0)?.total()?;
    out.fresh(rows.width).untracked(g)
}

/// The gradients of `gate` (B, D), and of `y` (B, T, D) if it is asked for, of `gate y` from `g`.
pub(super) fn gate(g: &Tensor, gate: &Tensor, y: &Tensor, of_y: bool) -> Result<(Tensor, Option<Tensor>)> {
    let (sums, dy) = gate_sums(g, gate, y, of_y)?;
    Ok((sums.total()?.fresh(gate.shape()).untracked(g)?, dy))
}

/// The gradient of `y`, see [`gate`]; that of the gate is added to `sum` (B, D) in f32, in place.
pub(crate) fn gate_gradients(g: &Tensor, gate: &Tensor, y: &Tensor, sum: &Tensor) -> Result<Tensor> {
    let (sums, dy) = gate_sums(g, gate, y, true)?;
    sums.add_to(Rows::dense(sum)?.ptr)?;
    Ok(dy.unwrap_or_else(|| unreachable!("asked for")))
}

fn gate_sums(g: &Tensor, gate: &Tensor, y: &Tensor, of_y: bool) -> Result<(Partial, Option<Tensor>)> {
    let device = device(g)?;
    let (g_rows, gates, y_rows) = (Rows::dense(g)?, Rows::new(gate)?, Rows::dense(y)?);
    let vec = vec(g.dtype(), &[&g_rows, &gates, &y_rows]);
    let dy = if of_y { Some(Out::new(&device, g.dtype(), g.elem_count())?) } else { None };
    let pointers = [g_rows.ptr, y_rows.ptr, gates.ptr, dy.as_ref().map_or(0, |o| o.ptr)];
    let sizes = (gates.rows, g_rows.rows / gates.rows, g_rows.width);
    let sums = partial(&device, (g.dtype(), vec), pointers, sizes, gates.stride)?;
    Ok((sums, dy.map(|o| o.fresh(y.shape()).untracked(g)).transpose()?))
}

/// Adds the sum of `g` over all but the last dimension to `sum` (O) in f32, in place.
pub(crate) fn add_rows(sum: &Tensor, g: &Tensor) -> Result<()> {
    let (rows, to) = (Rows::dense(g)?, Rows::dense(sum)?);
    let vec = vec(g.dtype(), &[&rows]);
    let sizes = (1, rows.rows, rows.width);
    let partial = partial(&device(g)?, (g.dtype(), vec), [rows.ptr, 0, 0, 0], sizes, 0)?;
    partial.add_to(to.ptr)
}

/// `gelu(argument)` and the gradient of `argument` for the gradient `g` of that, where both arguments were; the sum of the
/// rows of the latter is added to `sum` in f32, in place, if there is one.
pub(crate) fn gelu_gradient(argument: &Tensor, g: &Tensor, sum: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let device = device(g)?;
    let (argument, g) = (argument.detach().contiguous()?, g.detach().contiguous()?);
    let (arguments, grads) = (Rows::dense(&argument)?, Rows::dense(&g)?);
    let dtype = g.dtype();
    let vec = vec(dtype, &[&arguments, &grads]);
    let (packs, rows) = (grads.width / vec, grads.rows);
    let (chunk, chunks) = chunks(packs, rows, 1);
    let partial = Partial::new(&device, (dtype, vec), (1, chunks, grads.width))?;
    let mut args = [arguments.ptr, grads.ptr, arguments.ptr, grads.ptr, partial.sums.ptr].map(Arg::Ptr).to_vec();
    args.extend([int(packs)?, int(rows)?, int(chunk)?]);
    let grid = ((packs.div_ceil(32), chunks, 1), (32, 8, 1));
    gpu(&device)?.launch((&SUMS, "gelu_pull", partial.variant()), grid, 0, &args)?;
    if let Some(sum) = sum {
        partial.add_to(Rows::dense(sum)?.ptr)?;
    }
    Ok((argument, g))
}

/// Rows of `table` (V, D) by `index` (B) in u32, recorded; for at most [`LOOKUPS`] rows.
pub(crate) fn lookup(table: &Tensor, index: &Tensor) -> Result<Tensor> {
    let index = index.contiguous()?;
    let found = table.detach().index_select(&index, 0)?;
    let fresh = {
        let (storage, layout) = found.storage_and_layout();
        Fresh::copy_of(&storage, layout)?
    };
    record1("lookup", [table], fresh, move |[table], _, g| {
        Ok([wanted(table, || {
            let device = device(g)?;
            let (rows, width) = table.dims2()?;
            let grads = Rows::dense(g)?;
            let vec = vec(g.dtype(), &[&grads]);
            let packs = width / vec;
            let partial = Partial::new(&device, (g.dtype(), vec), (rows, 1, width))?;
            let mut args = [grads.ptr, address(&index)?, partial.sums.ptr].map(Arg::Ptr).to_vec();
            args.extend([int(packs)?, int(grads.rows)?]);
            let grid = ((packs.div_ceil(32), rows, 1), (32, 8, 1));
            gpu(&device)?.launch((&SUMS, "lookup_sums", partial.variant()), grid, 0, &args)?;
            partial.total()?.fresh((rows, width)).untracked(g)
        })?])
    })
}

/// How many rows a block adds up, and how many blocks there are for a group.
fn chunks(packs: usize, rows: usize, groups: usize) -> (usize, usize) {
    // About a thousand blocks keep a large GPU busy; shorter chunks than 32 rows are all overhead.
    let chunks = (1024 / (packs.div_ceil(32) * groups)).clamp(1, rows.div_ceil(32));
    let chunk = rows.div_ceil(chunks);
    (chunk, rows.div_ceil(chunk))
}

/// Pointers: g, y, gate, dy, 0 where there is none. Sizes: groups, rows of each, width.
fn partial(
    device: &CudaDevice,
    (dtype, vec): (DType, usize),
    pointers: [u64; 4],
    (groups, rows, width): (usize, usize, usize),
    stride: usize,
) -> Result<Partial> {
    let packs = width / vec;
    let (chunk, chunks) = chunks(packs, rows, groups);
    let partial = Partial::new(device, (dtype, vec), (groups, chunks, width))?;
    let mut args = pointers.map(Arg::Ptr).to_vec();
    args.extend([Arg::Ptr(partial.sums.ptr), int(packs)?, int(rows)?, int(chunk)?, int(stride)?]);
    let grid = ((packs.div_ceil(32), chunks, groups), (32, 8, 1));
    gpu(device)?.launch((&SUMS, "group_sums", partial.variant()), grid, 0, &args)?;
    Ok(partial)
}

/// Partial sums (groups, chunks, width) in f32, to be added up over chunks.
pub(super) struct Partial {
    device: CudaDevice,
    pub(super) sums: Out,
    dtype: DType,
    vec: usize,
    sizes: (usize, usize, usize),
}

impl Partial {
    /// Memory for them, for results of a type and kernels that move `vec` elements at once.
    pub(super) fn new(device: &CudaDevice, (dtype, vec): (DType, usize), sizes: (usize, usize, usize)) -> Result<Self> {
        let (groups, chunks, width) = sizes;
        let sums = Out::new(device, DType::F32, groups * chunks * width)?;
        Ok(Self { device: device.clone(), sums, dtype, vec, sizes })
    }

    fn variant(&self) -> Variant {
        Variant { dtype: self.dtype, vec: self.vec, steps: 0, head: 0 }
    }

    /// The sums (groups, width), rounded.
    pub(super) fn total(self) -> Result<Out> {
        let out = Out::new(&self.device, self.dtype, self.sizes.0 * self.sizes.2)?;
        self.finish(out.ptr, 0)?;
        Ok(out)
    }

    /// Adds the sums (groups, width) to f32 at an address.
    pub(super) fn add_to(self, sum: u64) -> Result<()> {
        self.finish(0, sum)
    }

    fn finish(&self, out: u64, sum: u64) -> Result<()> {
        let (groups, chunks, width) = self.sizes;
        let args = [Arg::Ptr(self.sums.ptr), Arg::Ptr(out), Arg::Ptr(sum), int(width)?, int(chunks)?];
        // At least four chunks for each thread.
        let tall = chunks.div_ceil(4).clamp(1, 32) as u32;
        let grid = ((width.div_ceil(32), groups, 1), (32, tall, 1));
        gpu(&self.device)?.launch((&SUMS, "finish_sums", self.variant()), grid, 0, &args)
    }
}

/// `‖f − z‖²` of every row, then `‖f‖²` of every row, (2B) in f32, of (B, N) each.
pub(crate) fn residual_squares(z: &Tensor, f: &Tensor) -> Result<Tensor> {
    let device = device(z)?;
    let (z_rows, f_rows) = (Rows::dense(z)?, Rows::dense(f)?);
    let (batch, width) = (z_rows.rows, z_rows.width);
    let vec = vec(z.dtype(), &[&z_rows, &f_rows]);
    let packs = width / vec;
    // As in `chunks`.
    let chunks = (1024 / batch).clamp(1, packs.div_ceil(1024).max(1));
    let partial = Partial::new(&device, (DType::F32, 1), (1, chunks, 2 * batch))?;
    let args = [Arg::Ptr(z_rows.ptr), Arg::Ptr(f_rows.ptr), Arg::Ptr(partial.sums.ptr), int(packs)?];
    let variant = Variant { dtype: z.dtype(), vec, steps: 0, head: 0 };
    let grid = ((chunks, batch, 1), (256, 1, 1));
    gpu(&device)?.launch((&SUMS, "residual_squares", variant), grid, 0, &args)?;
    partial.total()?.fresh(2 * batch).untracked(z)
}
