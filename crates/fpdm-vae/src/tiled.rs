//! A large picture, a tile at a time.

use candle_core::{D, Tensor};
use fpdm_core::{Error, LatentCodec, Moments, Result};

/// How a picture is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile, in latents.
    pub tile: usize,
    /// Latents that neighbours share, at least; they are blended there.
    pub overlap: usize,
    /// Pixels to a latent, along each side: 8 for Stable Diffusion.
    pub factor: usize,
}

impl Default for Tiling {
    /// 64 latents, 512 pixels of Stable Diffusion, with a quarter shared.
    fn default() -> Self {
        Self { tile: 64, overlap: 16, factor: 8 }
    }
}

/// A codec that sees one tile at a time: memory is bounded by a tile and the result.
///
/// Neighbouring tiles share `overlap` latents, over which one fades linearly into the other. A codec without
/// statistics over the picture, such as [`TinyAutoencoder`](crate::TinyAutoencoder), gives the same as the whole away
/// from the seams; one with group norms and attention, such as [`AutoencoderKl`](crate::AutoencoderKl), shifts a little
/// everywhere, since each tile is normalised on its own.
///
/// # Shapes
///
/// Those of the codec within. A picture no larger than a tile is passed on whole.
pub struct Tiled {
    codec: Box<dyn LatentCodec>,
    tiling: Tiling,
}

impl Tiled {
    /// `codec`, a tile at a time.
    ///
    /// # Errors
    /// [`Error::Config`] if tile or factor are 0, or tiles share more than half of their side.
    pub fn new(codec: Box<dyn LatentCodec>, tiling: Tiling) -> Result<Self> {
        for (field, value) in [("tile", tiling.tile), ("factor", tiling.factor)] {
            if value == 0 {
                return Err(Error::config(field, "0; give at least 1"));
            }
        }
        if 2 * tiling.overlap > tiling.tile {
            let why = format!("{} latents of a tile of {}; give at most half", tiling.overlap, tiling.tile);
            return Err(Error::config("overlap", why));
        }
        Ok(Self { codec, tiling })
    }

    /// Runs `part` on tiles of `t`, each `tile` and its multiples of `unit` wide; `scale` takes positions to those of
    /// the result.
    fn assemble<const N: usize>(
        &self,
        t: &Tensor,
        unit: usize,
        scale: impl Fn(usize) -> usize,
        part: impl Fn(&Tensor) -> Result<[Tensor; N]>,
    ) -> Result<[Tensor; N]> {
        let (_, _, height, width) = t.dims4()?;
        let (tile, overlap) = (self.tiling.tile * unit, self.tiling.overlap * unit);
        if height <= tile && width <= tile {
            return part(t);
        }
        let mut rows = Canvas::new(2);
        for y in starts(height, tile, overlap, unit) {
            let row = t.narrow(2, y, tile.min(height))?;
            let mut columns = Canvas::new(3);
            for x in starts(width, tile, overlap, unit) {
                columns.add(scale(x), part(&row.narrow(3, x, tile.min(width))?.contiguous()?)?)?;
            }
            rows.add(scale(y), columns.finish()?)?;
        }
        rows.finish()
    }
}

impl LatentCodec for Tiled {
    /// # Errors
    /// [`Error::Shape`] if the sides are no multiples of the factor, or the codec within has another one.
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        let factor = self.tiling.factor;
        let fits = matches!(*pixels.dims(), [_, _, h, w] if h % factor == 0 && w % factor == 0);
        if !fits {
            let expected = format!("(B, C, H, W), H and W multiples of {factor}");
            return Err(Error::shape("Tiled::encode: pixels", expected, pixels.dims()));
        }
        let [mean, std] = self.assemble(
            pixels,
            factor,
            |at| at / factor,
            |tile| {
                let moments = self.codec.encode(tile)?;
                self.fits(&moments.mean, tile)?;
                Ok([moments.mean, moments.std])
            },
        )?;
        Ok(Moments { mean, std })
    }

    /// # Errors
    /// [`Error::Shape`] if there are not four dimensions, or the codec within has another factor.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        if latents.rank() != 4 {
            return Err(Error::shape("Tiled::decode: latents", "(B, C, H, W)", latents.dims()));
        }
        let [pixels] = self.assemble(
            latents,
            1,
            |at| at * self.tiling.factor,
            |tile| {
                let pixels = self.codec.decode(tile)?;
                self.fits(tile, &pixels)?;
                Ok([pixels])
            },
        )?;
        Ok(pixels)
    }
}

impl Tiled {
    fn fits(&self, latents: &Tensor, pixels: &Tensor) -> Result<()> {
        let factor = self.tiling.factor;
        if latents.dim(D::Minus1)? * factor == pixels.dim(D::Minus1)? {
            return Ok(());
        }
        let got = format!("{} pixels for {} latents", pixels.dim(D::Minus1)?, latents.dim(D::Minus1)?);
        Err(Error::config("factor", format!("{factor}, but the codec makes {got}; give the codec's own")))
    }
}

/// Where tiles start: all are whole, so the last one shares more.
fn starts(size: usize, tile: usize, overlap: usize, unit: usize) -> Vec<usize> {
    let last = size.saturating_sub(tile);
    let mut starts: Vec<usize> = (0..last).step_by((tile - overlap).max(unit)).collect();
    starts.push(last);
    starts
}

/// Tiles put side by side along one dimension. Only the part that the next tile may still change is kept apart.
struct Canvas<const N: usize> {
    dim: usize,
    done: [Vec<Tensor>; N],
    tail: Option<(usize, [Tensor; N])>,
}

impl<const N: usize> Canvas<N> {
    fn new(dim: usize) -> Self {
        Self { dim, done: std::array::from_fn(|_| Vec::new()), tail: None }
    }

    /// Adds a tile that starts at `at`, which is behind the start of the one before.
    fn add(&mut self, at: usize, tile: [Tensor; N]) -> Result<()> {
        let Some((start, tail)) = self.tail.take() else {
            self.tail = Some((at, tile));
            return Ok(());
        };
        let mut next = tile.clone();
        for i in 0..N {
            let (old, new, len) = (&tail[i], &tile[i], tail[i].dim(self.dim)?);
            let keep = at - start;
            let shared = len - keep;
            self.done[i].push(old.narrow(self.dim, 0, keep)?);
            if shared > 0 {
                let rest = new.dim(self.dim)? - shared;
                let faded = fade(&old.narrow(self.dim, keep, shared)?, &new.narrow(self.dim, 0, shared)?, self.dim)?;
                next[i] = Tensor::cat(&[faded, new.narrow(self.dim, shared, rest)?], self.dim)?;
            }
        }
        self.tail = Some((at, next));
        Ok(())
    }

    fn finish(mut self) -> Result<[Tensor; N]> {
        let Some((_, tail)) = self.tail else {
            return Err(Error::config("size", "a picture without pixels; give positive sides"));
        };
        let mut whole = tail.clone();
        for (i, tail) in tail.into_iter().enumerate() {
            self.done[i].push(tail);
            whole[i] = Tensor::cat(&self.done[i], self.dim)?;
        }
        Ok(whole)
    }
}

/// From `a` to `b` along a dimension.
fn fade(a: &Tensor, b: &Tensor, dim: usize) -> Result<Tensor> {
    let len = a.dim(dim)?;
    let mut shape = [1; 4];
    shape[dim] = len;
    let ramp: Vec<f32> = (0..len).map(|i| (i as f32 + 0.5) / len as f32).collect();
    let ramp = Tensor::from_vec(ramp, &shape[..], a.device())?.to_dtype(a.dtype())?;
    Ok((a + (b - a)?.broadcast_mul(&ramp)?)?)
}
