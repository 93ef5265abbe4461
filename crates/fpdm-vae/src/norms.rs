//! Whose statistics the norms of a network use.

use candle_core::Tensor;
use fpdm_core::Result;

use crate::tiled::Core;

/// Mean and variance of each sample and group, both `(B, G, 1)`, over so many pixels.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    pub(crate) mean: Tensor,
    pub(crate) variance: Tensor,
    pub(crate) pixels: usize,
}

impl Statistics {
    /// Of both parts together (Chan, Golub and LeVeque 1983, equation 2.1).
    fn join(&self, other: &Self) -> Result<Self> {
        let pixels = self.pixels + other.pixels;
        let (share, rest) = (other.pixels as f64 / pixels as f64, self.pixels as f64 / pixels as f64);
        let apart = (&other.mean - &self.mean)?;
        let mean = (&self.mean + (&apart * share)?)?;
        let within = ((&self.variance * rest)? + (&other.variance * share)?)?;
        Ok(Self { mean, variance: (within + (apart.sqr()? * (share * rest))?)?, pixels })
    }
}

/// The norms of a network, in the order in which a pass meets them.
///
/// A picture that is seen whole gives every norm its own statistics. One that is seen in tiles can be told the
/// statistics of the whole, which an earlier pass over the tiles has gathered.
#[derive(Default)]
pub(crate) struct Norms {
    /// Those of the whole, one a norm; none: each tile has its own.
    given: Option<Vec<Statistics>>,
    /// What is gathered: of the part of each tile that no other answers for.
    gathered: Option<Vec<Statistics>>,
    core: Core,
    next: usize,
}

impl Norms {
    /// Each norm takes its own statistics.
    pub(crate) fn own() -> Self {
        Self::default()
    }

    /// Norms use `given`, if there is something, and gather anew if asked to.
    pub(crate) fn new(given: Option<Vec<Statistics>>, gather: bool) -> Self {
        Self { given, gathered: gather.then(Vec::new), ..Self::default() }
    }

    /// A tile begins.
    pub(crate) fn tile(&mut self, core: Core) {
        (self.core, self.next) = (core, 0);
    }

    /// What the tiles so far have together.
    pub(crate) fn gathered(self) -> Option<Vec<Statistics>> {
        self.gathered
    }

    /// The statistics that the next norm is to use for `x`; `measure` takes those of a part of it.
    pub(crate) fn of(&mut self, x: &Tensor, measure: impl Fn(&Tensor) -> Result<Statistics>) -> Result<Statistics> {
        let number = self.next;
        self.next += 1;
        if let Some(gathered) = &mut self.gathered {
            let part = measure(&self.core.of(x)?)?;
            match gathered.get_mut(number) {
                Some(before) => *before = before.join(&part)?,
                None => gathered.push(part),
            }
        }
        match self.given.as_ref().and_then(|given| given.get(number)) {
            Some(given) => Ok(given.clone()),
            None => measure(x),
        }
    }
}
