//! Batches that threads prepare are the batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use fpdm_core::rng::{Stream, normal_batch};
use fpdm_core::{Error, Moments, Result};
use fpdm_train::{Ahead, Batch, DataSource, Prefetch};

/// Noise; batches whose number ends in 5 are broken.
struct Noise {
    read: AtomicU64,
}

impl DataSource for Noise {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        self.read.fetch_add(1, Ordering::SeqCst);
        if index % 10 == 5 {
            return Err(Error::config("data", format!("image {index} is broken")));
        }
        // Later batches are ready sooner, so that their order has to be seen to.
        std::thread::sleep(Duration::from_micros(900 - 90 * (index % 10)));
        let positions: Vec<u64> = (index * size as u64..(index + 1) * size as u64).collect();
        let mean = normal_batch(0, Stream::Data, &positions, (1, 2, 2), DType::F32, &Device::Cpu)?;
        let moments = Moments { std: mean.zeros_like()?, mean };
        Ok(Batch { moments, y: Tensor::zeros(size, DType::U32, &Device::Cpu)?, positions })
    }
}

fn noise() -> Arc<Noise> {
    Arc::new(Noise { read: AtomicU64::new(0) })
}

fn told(batch: Result<Batch>) -> Result<(Vec<u64>, Vec<f32>), String> {
    let batch = batch.map_err(|e| e.to_string())?;
    Ok((batch.positions, batch.moments.mean.flatten_all().unwrap().to_vec1().unwrap()))
}

#[test]
fn batches_and_errors_are_the_sources_in_their_order() -> Result<()> {
    for (threads, depth) in [(1, 1), (1, 4), (3, 2), (4, 9)] {
        let source = noise();
        let ahead = Prefetch::new(source.clone(), 3, threads, depth)?;
        // Onwards, an error asked for again, a jump as on resuming, backwards, another size.
        for index in (0..12).chain([5, 5, 6]).chain(40..48).chain([3, 2]) {
            assert_eq!(told(ahead.batch(index, 3)), told(source.batch(index, 3)), "batch {index}");
        }
        assert_eq!(told(ahead.batch(7, 2)), told(source.batch(7, 2)));
        assert!(told(ahead.batch(15, 3)).unwrap_err().contains("image 15"));
    }
    Ok(())
}

#[test]
fn no_more_is_read_than_there_is_room_for() -> Result<()> {
    let source = noise();
    let ahead = Prefetch::new(source.clone(), 1, 2, 3)?;
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(source.read.load(Ordering::SeqCst), 0, "nobody has asked yet");
    ahead.batch(0, 1)?;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(source.read.load(Ordering::SeqCst), 4, "the one asked for and three ahead");
    Ok(())
}

#[test]
fn a_panic_is_an_error_of_its_batch() -> Result<()> {
    let ahead = Ahead::new(2, 2, |i| if i == 3 { panic!("at {i}") } else { Ok(i) })?;
    assert_eq!([ahead.get(1)?, ahead.get(2)?], [1, 2]);
    assert!(ahead.get(3).unwrap_err().to_string().contains("batch 3"));
    assert_eq!(ahead.get(4)?, 4);
    assert!(Ahead::new(0, 1, Ok).is_err() && Ahead::new(1, 0, Ok).is_err());
    Ok(())
}
