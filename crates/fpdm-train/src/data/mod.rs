//! Where training samples come from.

mod ahead;
mod encoded;
mod images;
mod latents;
mod normalised;
mod npy;
mod order;
mod tar;

use candle_core::{DType, Tensor};
use fpdm_core::dit::Labels;
use fpdm_core::{Error, Moments, Result};

pub use self::ahead::{Ahead, Prefetch};
pub use self::encoded::Encoded;
pub use self::images::{ImageDecoder, ImageFolder, ImageSource, Part, Pixels};
pub use self::latents::{LatentIndex, LatentShard, LatentShards, ShardEntry};
pub use self::normalised::{Normalised, measure_latents};
pub use self::npy::NpyFolders;
pub use self::order::Order;
pub use self::tar::TarShards;

/// Batch number `index` is a pure function: shuffling, resuming and prefetching need no state.
///
/// Sample `i` of batch `index` has position `index·B + i` in an endless sequence; an epoch is a run of as many
/// positions as there are samples, each of which comes up once in it.
pub trait DataSource: Send + Sync {
    /// Batch number `index` of `size` samples.
    fn batch(&self, index: u64, size: usize) -> Result<Batch>;
}

impl<S: DataSource + ?Sized> DataSource for &S {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        (**self).batch(index, size)
    }
}

impl<S: DataSource + ?Sized> DataSource for Box<S> {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        (**self).batch(index, size)
    }
}

impl<S: DataSource + ?Sized> DataSource for std::sync::Arc<S> {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        (**self).batch(index, size)
    }
}

/// Samples to train on.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Normalised latents, `(B, C, H, W)`, best on the CPU: a run brings what it needs to its device.
    pub moments: Moments,
    /// Labels: classes `(B)` in u32, or vectors `(B, L)`.
    pub y: Tensor,
    /// The place of each sample in the endless sequence: the number of its random streams.
    pub positions: Vec<u64>,
}

impl Batch {
    /// Refuses a batch whose parts do not fit each other or the network's labels.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Config`] with the label and its sample for a class that the network does not have.
    pub fn check(&self, labels: Labels) -> Result<()> {
        let (b, ..) = self.moments.mean.dims4()?;
        if self.moments.std.shape() != self.moments.mean.shape() {
            return Err(Error::shape("batch: std like mean", self.moments.mean.dims(), self.moments.std.dims()));
        }
        if self.positions.len() != b || b == 0 {
            return Err(Error::shape("batch: positions, one a sample", b, self.positions.len()));
        }
        match labels {
            Labels::None => Ok(()),
            Labels::Vector(n) if self.y.dims() == [b, n] => Ok(()),
            Labels::Vector(n) => Err(Error::shape("batch: label vectors", [b, n], self.y.dims())),
            Labels::Classes(_) if self.y.dims() != [b] => Err(Error::shape("batch: labels", [b], self.y.dims())),
            Labels::Classes(n) => {
                let y = self.y.to_dtype(DType::U32)?.to_vec1::<u32>()?;
                match y.iter().zip(&self.positions).find(|(y, _)| **y as usize >= n) {
                    None => Ok(()),
                    Some((y, position)) => {
                        let why = format!("class {y} at position {position} is outside the network's 0 to {}", n - 1);
                        Err(Error::config("labels", why))
                    }
                }
            }
        }
    }
}
