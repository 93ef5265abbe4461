//! From any layout to any other that can hold the same network.

use candle_core::{DType, Device, Tensor};

use super::container::broken;
use super::diffusers::{Targets, targets};
use super::layout::Layout;
use super::open::Checkpoint;
use crate::dit::{Config, Labels, position_embedding};
use crate::{Error, Result};

impl Checkpoint {
    /// All tensors under the names of `layout`, as `dtype` on the CPU, sorted.
    ///
    /// [`Layout::Fpdm`] and [`Layout::Dit`] are our names. In [`Layout::DiffusersDit`] shared embedders are repeated
    /// in every block and `pos_embed` is left out, as diffusers does. Its model has other time frequencies and another
    /// epsilon than the released DiT, which no tensor says: [`Config`] does.
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
        let depth = self.blocks("blocks.")?;
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
                    if !rows.is_multiple_of(names.len()) {
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

    /// The tensors that the published code of FPDM or DiT expects in a state dict, as `dtype` on the CPU, sorted:
    /// ours, and `pos_embed`, which that code stores.
    ///
    /// # Errors
    /// [`Error::Config`] if the published code has no such network; the errors of [`Checkpoint::tensors`].
    pub fn published(&self, config: &Config, dtype: DType) -> Result<Vec<(String, Tensor)>> {
        if config.group > 1 {
            return Err(Error::config("group", format!("{}: the published code iterates one block", config.group)));
        }
        if config.block_embedders {
            return Err(Error::config("block_embedders", "the published code has one embedder for all blocks"));
        }
        let Labels::Classes(_) = config.labels else {
            return Err(Error::config("labels", format!("{:?}: the published code knows classes only", config.labels)));
        };
        self.check_network(config)?;
        let layout = if self.layout() == Layout::Fpdm { Layout::Fpdm } else { Layout::Dit };
        let mut tensors = self.tensors(layout, dtype)?;
        if !self.shapes().contains_key("pos_embed") {
            let (h, w) = config.grid();
            let positions = position_embedding(h, w, config.hidden_size, dtype, &Device::Cpu)?;
            tensors.push(("pos_embed".into(), positions));
            tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        Ok(tensors)
    }
}
