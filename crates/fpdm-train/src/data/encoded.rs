//! Images encoded while training.

use fpdm_core::{LatentCodec, Result};

use super::{Batch, DataSource};

/// The latents of another source's images, by a codec that stays as it is.
///
/// Every image is encoded anew each time it comes up. For more than an epoch or two a set that is encoded once
/// ([`LatentShards`](crate::LatentShards)) is cheaper.
pub struct Encoded<S, C> {
    images: S,
    codec: C,
}

impl<S: DataSource, C: LatentCodec> Encoded<S, C> {
    /// The latents of `images`, whose batches are pixels `(B, 3, H, W)` in [-1, 1] on the codec's device.
    pub fn new(images: S, codec: C) -> Self {
        Self { images, codec }
    }
}

impl<S: DataSource, C: LatentCodec> DataSource for Encoded<S, C> {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        let Batch { moments, y, positions } = self.images.batch(index, size)?;
        let mut moments = self.codec.encode(&moments.mean)?;
        // A codec may have been built from variables: it is not trained here.
        (moments.mean, moments.std) = (moments.mean.detach(), moments.std.detach());
        Ok(Batch { moments, y, positions })
    }
}
