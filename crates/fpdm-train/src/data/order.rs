use fpdm_core::rng::{Stream, stream};
use fpdm_core::{Error, Result};
use rand::RngCore;

/// A shuffled order of samples that needs no memory: every epoch is another permutation, computed a place at a time.
///
/// # Reference
/// A Feistel network of four rounds (Luby and Rackoff 1988) on the smallest even number of bits that holds all
/// samples; numbers that are none are permuted again ("cycle walking", Black and Rogaway 2002).
///
/// # Cost
/// Under four walks a sample on average, whatever the number of samples.
///
/// ```
/// use fpdm_train::Order;
///
/// let order = Order::new(5, 42)?;
/// let mut epoch: Vec<_> = (5..10).map(|position| order.at(position)).collect();
/// epoch.sort();
/// assert_eq!(epoch, [0, 1, 2, 3, 4]);
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    len: u64,
    seed: u64,
}

impl Order {
    /// The order of `len` samples.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty set.
    pub fn new(len: usize, seed: u64) -> Result<Self> {
        match len {
            0 => Err(Error::config("data", "the set is empty; there is nothing to train on")),
            _ => Ok(Self { len: len as u64, seed }),
        }
    }

    /// The sample at a place of the endless sequence.
    pub fn at(&self, position: u64) -> usize {
        let (epoch, place) = (position / self.len, position % self.len);
        let mut rng = stream(self.seed, Stream::Data, epoch);
        let keys: [u64; 4] = std::array::from_fn(|_| rng.next_u64());
        let half = (64 - (self.len - 1).leading_zeros()).div_ceil(2).max(1);
        let mut value = place;
        loop {
            value = feistel(value, half, &keys);
            if value < self.len {
                return value as usize;
            }
        }
    }

    /// A fair coin for a place, for example whether to mirror its sample.
    pub fn coin(&self, position: u64) -> bool {
        let mut rng = stream(self.seed, Stream::Data, position / self.len);
        let key = (0..5).map(|_| rng.next_u64()).last().unwrap_or_default();
        mix(position ^ key) & 1 == 1
    }
}

fn feistel(value: u64, half: u32, keys: &[u64; 4]) -> u64 {
    let mask = (1 << half) - 1;
    let (mut left, mut right) = (value >> half, value & mask);
    for key in keys {
        (left, right) = (right, left ^ (mix(right ^ key) & mask));
    }
    left << half | right
}

/// Steele, Lea and Flood's finaliser of SplitMix64 (2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
