//! A file as it is, for networks that are not ours.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;

use super::open::{Which, container};
use crate::Result;

/// All tensors of a safetensors file or a `torch.save` archive, under the names that they have there, on the CPU in the
/// dtypes that they are stored in. The format is found by the content; `which` picks a set of weights where an archive
/// holds several.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_core::checkpoint::{Which, read_tensors, write_torch};
///
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("decoder.pth");
/// write_torch(&path, &[("1.weight".into(), Tensor::ones((2, 3), DType::F16, &Device::Cpu)?)])?;
/// assert_eq!(read_tensors(&path, Which::Model)?["1.weight"].dims(), [2, 3]);
/// # fpdm_core::Result::<()>::Ok(())
/// ```
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if the file cannot be read, [`Error::Weights`](crate::Error::Weights) if it is
/// damaged or of another format.
pub fn read_tensors(path: impl AsRef<Path>, which: Which) -> Result<HashMap<String, Tensor>> {
    let path = path.as_ref();
    let container = container(path, &[path], which)?;
    container.shapes().keys().map(|name| Ok((name.clone(), container.read(name)?))).collect()
}
