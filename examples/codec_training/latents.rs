//! Latents of whole images by a codec that does not change, each encoded once.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use fpdm_vae::LatentCodec;

use super::pictures::Batch;

/// Latents on the host, of images and of their mirror images.
///
/// A decoder that sees cuttings of them sees what it will see when whole images are sampled, also at borders: the
/// latents of a cutting are other ones there.
pub(crate) struct Latents {
    /// By image, then as it is and mirrored. Images beyond are encoded whenever they come.
    kept: Vec<[Option<Vec<f32>>; 2]>,
    /// Pixels to a latent.
    factor: usize,
    crop: usize,
}

impl Latents {
    /// Keeps those of the first `kept` images.
    pub(crate) fn new(kept: usize, factor: usize, crop: usize) -> Self {
        Self { kept: vec![[None, None]; kept], factor, crop }
    }

    /// The latents of a batch's parts, `(B, C, crop/F, crop/F)`: those of the whole images, cut.
    pub(crate) fn of(&mut self, batch: &Batch, teacher: &dyn LatentCodec, device: &Device) -> Result<Tensor> {
        let pieces = &batch.pieces;
        let held = |kept: &[[Option<Vec<f32>>; 2]], i: usize| -> Option<Vec<f32>> {
            kept.get(pieces[i].index)?[usize::from(pieces[i].mirrored)].clone()
        };
        let mut whole: Vec<_> = (0..pieces.len()).map(|i| held(&self.kept, i)).collect();
        let missing: Vec<_> = (0..pieces.len()).filter(|&i| whole[i].is_none()).collect();
        if !missing.is_empty() {
            let z = teacher.encode(&batch.whole(&missing, device)?)?.mean.to_dtype(DType::F32)?;
            for (&i, z) in missing.iter().zip(z.flatten_from(1)?.to_vec2::<f32>()?) {
                if let Some(kept) = self.kept.get_mut(pieces[i].index) {
                    kept[usize::from(pieces[i].mirrored)] = Some(z.clone());
                }
                whole[i] = Some(z);
            }
        }
        let (side, crop) = (batch.side() / self.factor, self.crop / self.factor);
        let (mut cut, mut channels) = (Vec::new(), 0);
        for (piece, whole) in pieces.iter().zip(whole.into_iter().flatten()) {
            channels = whole.len() / (side * side);
            let [top, left] = [piece.top, piece.left].map(|offset| offset / self.factor);
            for channel in whole.chunks_exact(side * side) {
                for row in channel.chunks_exact(side).skip(top).take(crop) {
                    cut.extend_from_slice(&row[left..left + crop]);
                }
            }
        }
        Ok(Tensor::from_vec(cut, (pieces.len(), channels, crop, crop), device)?)
    }
}
