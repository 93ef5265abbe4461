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

impl Tiling {
    /// Whether the values can be used together.
    ///
    /// # Errors
    /// [`Error::Config`] if tile or factor are 0, or tiles share more than half of their side.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [("tile", self.tile), ("factor", self.factor)] {
            if value == 0 {
                return Err(Error::config(field, "0; give at least 1"));
            }
        }
        if 2 * self.overlap > self.tile {
            let why = format!("{} latents of a tile of {}; give at most half", self.overlap, self.tile);
            return Err(Error::config("overlap", why));
        }
        Ok(())
    }

    /// Whether pixels `(B, C, H, W)` are whole latents.
    pub(crate) fn check_pixels(&self, what: &str, pixels: &Tensor) -> Result<()> {
        let factor = self.factor;
        match *pixels.dims() {
            [_, _, h, w] if h % factor == 0 && w % factor == 0 => Ok(()),
            _ => {
                let expected = format!("(B, C, H, W), H and W multiples of {factor}");
                Err(Error::shape(what, expected, pixels.dims()))
            }
        }
    }

    /// Runs `part` on each tile of `t` and puts the results together, blended where tiles overlap. A latent is `unit`
    /// wide in `t`; `scale` takes positions in `t` to those in the results.
    pub(crate) fn assemble<const N: usize>(
        &self,
        t: &Tensor,
        unit: usize,
        scale: impl Fn(usize) -> usize,
        mut part: impl FnMut(&Tensor, Core) -> Result<[Tensor; N]>,
    ) -> Result<[Tensor; N]> {
        let mut rows = Canvas::new(2);
        for y in self.spans(t.dim(2)?, unit) {
            let row = t.narrow(2, y.start, y.len)?;
            let mut columns = Canvas::new(3);
            for x in self.spans(t.dim(3)?, unit) {
                let tile = row.narrow(3, x.start, x.len)?.contiguous()?;
                columns.add(scale(x.start), part(&tile, Core([Some(y), Some(x)]))?)?;
            }
            rows.add(scale(y.start), columns.finish()?)?;
        }
        rows.finish()
    }

    /// A tile sewn together from small parts of all of `t`: it has about the statistics of the whole.
    pub(crate) fn sample(&self, t: &Tensor, unit: usize) -> Result<Tensor> {
        const PARTS: usize = 4;
        let mut t = t.clone();
        for dim in [2, 3] {
            let size = t.dim(dim)? / unit;
            if size > self.tile {
                let parts = PARTS.min(self.tile);
                let side = self.tile / parts;
                let starts = (0..parts).map(|i| ((2 * i + 1) * size / (2 * parts) - side / 2).min(size - side));
                let parts = starts.map(|start| t.narrow(dim, start * unit, side * unit));
                t = Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, dim)?;
            }
        }
        Ok(t.contiguous()?)
    }

    /// Calls `part` with each tile of `t`.
    pub(crate) fn each(
        &self,
        t: &Tensor,
        unit: usize,
        mut part: impl FnMut(&Tensor, Core) -> Result<()>,
    ) -> Result<()> {
        for y in self.spans(t.dim(2)?, unit) {
            for x in self.spans(t.dim(3)?, unit) {
                let tile = t.narrow(2, y.start, y.len)?.narrow(3, x.start, x.len)?.contiguous()?;
                part(&tile, Core([Some(y), Some(x)]))?;
            }
        }
        Ok(())
    }

    /// Tiles along one side: all are whole, so the last one shares more.
    fn spans(&self, size: usize, unit: usize) -> Vec<Span> {
        let (tile, overlap) = (self.tile * unit, self.overlap * unit);
        let last = size.saturating_sub(tile);
        let mut starts: Vec<usize> = (0..last).step_by((tile - overlap).max(unit)).collect();
        starts.push(last);
        let len = tile.min(size);
        // Neighbours answer for half of what they share, in whole latents.
        let border = |i: usize| match i {
            0 => 0,
            i if i == starts.len() => size,
            i => (starts[i] + starts[i - 1] + len) / 2 / unit * unit,
        };
        let span = |(i, &start): (usize, &usize)| Span { start, len, core: (border(i) - start, border(i + 1) - start) };
        starts.iter().enumerate().map(span).collect()
    }
}

/// A tile along one side: where it is, and the part of it that no other tile answers for, from its own start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    start: usize,
    len: usize,
    core: (usize, usize),
}

/// The part of a tile, down and across, that no other tile answers for; all of it by default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Core([Option<Span>; 2]);

impl Core {
    /// That part of `x`, which is the tile `(B, C, H, W)` in any resolution that has whole latents.
    pub(crate) fn of(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (dim, span) in [2, 3].into_iter().zip(self.0) {
            if let Some(Span { len, core: (from, to), .. }) = span {
                let at = |place: usize| place * x.dims()[dim] / len;
                x = x.narrow(dim, at(from), at(to) - at(from))?;
            }
        }
        Ok(x)
    }
}

/// A codec that sees one tile at a time: memory is bounded by a tile and the result.
///
/// Neighbouring tiles share `overlap` latents, over whose middle half one fades linearly into the other. A codec without
/// statistics over the picture, such as [`TinyAutoencoder`](crate::TinyAutoencoder), gives the same as the whole away
/// from the seams; one with group norms and attention, such as [`AutoencoderKl`](crate::AutoencoderKl), shifts
/// everywhere, since each tile is normalised on its own: [`TiledKl`](crate::TiledKl) is made for it.
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
        tiling.check()?;
        Ok(Self { codec, tiling })
    }
}

impl LatentCodec for Tiled {
    /// # Errors
    /// [`Error::Shape`] if the sides are no multiples of the factor, or the codec within has another one.
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        let factor = self.tiling.factor;
        self.tiling.check_pixels("Tiled::encode: pixels", pixels)?;
        let [mean, std] = self.tiling.assemble(
            pixels,
            factor,
            |at| at / factor,
            |tile, _| {
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
        let [pixels] = self.tiling.assemble(
            latents,
            1,
            |at| at * self.tiling.factor,
            |tile, _| {
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

/// From `a` to `b` along a dimension, over the middle half: the outer quarters are nearest to the edge of a tile, where
/// it knows least.
fn fade(a: &Tensor, b: &Tensor, dim: usize) -> Result<Tensor> {
    let len = a.dim(dim)?;
    let mut shape = [1; 4];
    shape[dim] = len;
    let ramp: Vec<f32> = (0..len).map(|i| ((i as f32 + 0.5) / len as f32 * 2. - 0.5).clamp(0., 1.)).collect();
    let ramp = Tensor::from_vec(ramp, &shape[..], a.device())?.to_dtype(a.dtype())?;
    Ok((a + (b - a)?.broadcast_mul(&ramp)?)?)
}
