//! Key names of older diffusers files.

use std::collections::HashMap;

use candle_core::Tensor;
use fpdm_core::Result;

/// Old names of the attention's projections, and new ones.
const OLD: [(&str, &str); 4] =
    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];

/// Gives every tensor its present name, and the attention's projections two dimensions where they were 1×1
/// convolutions.
pub(super) fn modern(tensors: HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>> {
    tensors
        .into_iter()
        .map(|(mut name, mut tensor)| {
            if name.contains(".attentions.") {
                for (old, new) in OLD {
                    name = name.replace(old, new);
                }
                if let &[o, i, 1, 1] = tensor.dims() {
                    tensor = tensor.reshape((o, i))?;
                }
            }
            Ok((name, tensor))
        })
        .collect()
}
