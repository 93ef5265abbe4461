//! From any layout to any other that can hold the same network.

use candle_core::{DType, Device, Tensor};

use super::container::broken;
use super::diffusers::{Targets, targets};
use super::layout::Layout;
use super::open::Checkpoint;
use crate::{Error, Result};

impl Checkpoint {
    /// All tensors under the names of `layout`, as `dtype` on the CPU, sorted.
    ///
    /// [`Layout::Fpdm`] and [`Layout::Dit`] are our names and at the same time the published ones. In
    /// [`Layout::DiffusersDit`] shared embedders are repeated in every block and `pos_embed` is left out, as diffusers
    /// does; note that diffusers' model uses slightly other time frequencies and another epsilon than the released
    /// DiT, which no tensor says ([`Hints`](super::Hints) do).
    ///
    /// # Errors
    /// [`Error::Config`] if `layout` cannot hold this network; [`Error::Weights`] if the file is damaged.
    pub fn tensors(&self, layout: Layout, dtype: DType) -> Result<Vec<(String, Tensor)>> {
        if (layout == Layout::Fpdm) != (self.layout() == Layout::Fpdm) {
            return Err(Error::config(
                "layout",
                format!("{layout:?} cannot hold {}, which is {:?}", self.origin(), self.layout()),
            ));
        }
        let mut out = Vec::new();
        let depth = if layout == Layout::DiffusersDit { self.hints()?.depth } else { 0 };
        for ours in self.names() {
            let tensor = self.tensor(ours, dtype, &Device::Cpu)?;
            if layout != Layout::DiffusersDit {
                out.push((ours.to_owned(), tensor));
                continue;
            }
            match targets(ours, depth) {
                Some(Targets::Drop) => {}
                Some(Targets::Copies(names)) => out.extend(names.into_iter().map(|name| (name, tensor.clone()))),
                Some(Targets::Rows(names)) => {
                    let rows = tensor.dims().first().copied().unwrap_or(0);
                    if rows % names.len() != 0 {
                        return Err(broken(
                            self.origin(),
                            format!("{ours}: {rows} rows are not q, k and v of one size"),
                        ));
                    }
                    for (i, name) in names.into_iter().enumerate() {
                        let third = tensor.narrow(0, i * (rows / 3), rows / 3)?.contiguous()?;
                        out.push((name, third));
                    }
                }
                None => return Err(broken(self.origin(), format!("{ours} has no place in the diffusers layout"))),
            }
        }
        out.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(out)
    }
}
