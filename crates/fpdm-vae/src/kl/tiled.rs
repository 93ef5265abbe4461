//! The variational autoencoder a tile at a time, with the norms of the whole.

use candle_core::Tensor;
use fpdm_core::{Error, LatentCodec, Moments, Result};

use super::AutoencoderKl;
use crate::norms::{Norms, Statistics};
use crate::tiled::{Core, Tiling};

/// An [`AutoencoderKl`] that sees the finer levels one tile at a time, and knows the picture as a whole where it must.
///
/// What looks at the whole picture is attention, which is at the size of the latents and stays whole, and the norms. A
/// tile that is normalised on its own has other colours than its neighbours. So the statistics of each norm are taken
/// from a tile that is sewn together from parts of the whole picture, then `passes` times from all tiles, each answering
/// for a part of its own and normalised by what the pass before found; and then the tiles are run for their pixels. A
/// pass makes the statistics of one more norm exact, and what is left of the difference several times smaller.
///
/// # Shapes
///
/// Those of [`AutoencoderKl`]. A picture no larger than a tile is passed on whole.
///
/// # Cost
///
/// `passes + 1` times that of separate tiles, and one tile. Memory of a tile, the result, and the coarsest level of the picture: with
/// Stable Diffusion's, 512 numbers a latent, where the result has 192.
#[derive(Clone, Debug)]
pub struct TiledKl {
    codec: AutoencoderKl,
    tiling: Tiling,
    passes: usize,
}

impl TiledKl {
    /// `codec`, a tile at a time.
    ///
    /// # Errors
    /// [`Error::Config`] if the tiling cannot be used or has another factor than the codec.
    pub fn new(codec: AutoencoderKl, tiling: Tiling, passes: usize) -> Result<Self> {
        tiling.check()?;
        let factor = codec.config().factor();
        if tiling.factor != factor {
            return Err(Error::config(
                "factor",
                format!("{}, but the codec's own is {factor}; give that", tiling.factor),
            ));
        }
        Ok(Self { codec, tiling, passes })
    }

    fn fits(&self, height: usize, width: usize) -> bool {
        height <= self.tiling.tile && width <= self.tiling.tile
    }

    /// The statistics of all norms over the whole of `t`.
    fn statistics(
        &self,
        t: &Tensor,
        unit: usize,
        run: impl Fn(&Tensor, &mut Norms) -> Result<Tensor>,
    ) -> Result<Option<Vec<Statistics>>> {
        let mut first = Norms::new(None, true);
        run(&self.tiling.sample(t, unit)?, &mut first)?;
        let mut found = first.gathered();
        for _ in 0..self.passes {
            let mut norms = Norms::new(found, true);
            self.tiling.each(t, unit, |tile, core: Core| {
                norms.tile(core);
                run(tile, &mut norms).map(drop)
            })?;
            found = norms.gathered();
        }
        Ok(found)
    }

    /// `t` a tile at a time with the statistics of the whole.
    fn run(
        &self,
        t: &Tensor,
        unit: usize,
        scale: impl Fn(usize) -> usize,
        run: impl Fn(&Tensor, &mut Norms) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut norms = Norms::new(self.statistics(t, unit, &run)?, false);
        let [whole] = self.tiling.assemble(t, unit, scale, |tile, core| {
            norms.tile(core);
            Ok([run(tile, &mut norms)?])
        })?;
        Ok(whole)
    }
}

impl LatentCodec for TiledKl {
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        let factor = self.tiling.factor;
        let x = self.codec.pixels(pixels)?;
        let (_, _, height, width) = x.dims4()?;
        if self.fits(height / factor, width / factor) {
            return self.codec.encode(pixels);
        }
        let encoder = &self.codec.encoder;
        let coarse = self.run(&x, factor, |at| at / factor, |tile, norms| encoder.fall(tile, norms))?;
        self.codec.moments(&self.codec.posterior_of(&encoder.middle(&coarse)?, pixels.dtype())?)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let z = self.codec.latents(latents)?;
        let (_, _, height, width) = z.dims4()?;
        if self.fits(height, width) {
            return self.codec.decode(latents);
        }
        let (decoder, factor) = (&self.codec.decoder, self.tiling.factor);
        let coarse = decoder.middle(&z)?;
        let pixels = self.run(&coarse, 1, |at| at * factor, |tile, norms| decoder.rise(tile, norms))?;
        Ok(pixels.to_dtype(latents.dtype())?)
    }
}
