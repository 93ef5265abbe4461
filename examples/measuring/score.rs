//! What samples are worth: beside the device, on threads of their own.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow, ensure};
use candle_core::{Device, Tensor};
use fpdm_eval::{FrechetTo, Gaussian, KidSubsets, kid};

use super::line::Line;
use crate::evaluation::features::Extractor;

/// Cells whose distances are computed at once: each has a part that is one thread's.
const THREADS: usize = 3;

/// What samples are compared with.
pub(crate) struct Scorer<'a> {
    pub(crate) reference: FrechetTo,
    pub(crate) held_out: Tensor,
    pub(crate) subsets: KidSubsets,
    pub(crate) extractor: &'a Extractor,
    pub(crate) out: &'a Path,
}

/// The samples of a cell.
pub(crate) enum Samples {
    /// Batches of pixels, whose features are still to be computed.
    Pixels(Vec<Tensor>),
    /// Batches of features.
    Features(Vec<Tensor>),
}

/// A cell that has been sampled.
pub(crate) struct Job {
    pub(crate) line: Line,
    pub(crate) samples: Samples,
    /// Such as `3/24`.
    pub(crate) place: String,
}

impl Scorer<'_> {
    fn score(&self, job: Job) -> Result<()> {
        let told = format!("{} {}", job.place, job.line.model);
        match self.write(job) {
            Err(error) if is_no_number(&error) => {
                eprintln!("{told}: no line: {error:#}");
                Ok(())
            }
            other => other,
        }
    }

    fn write(&self, job: Job) -> Result<()> {
        let Job { mut line, samples, place } = job;
        let features = match samples {
            Samples::Features(parts) => parts,
            Samples::Pixels(parts) => {
                parts.iter().map(|x| self.extractor.network.features(x)).collect::<fpdm_eval::Result<_>>()?
            }
        };
        let features = Tensor::cat(&features, 0)?.to_device(&Device::Cpu)?;
        let found = kid(&features, &self.held_out, self.subsets)?;
        (line.kid, line.kid_mean, line.kid_std, line.kid_size) = (found.value, found.mean, found.std, found.size);
        line.fd = self.reference.distance(&Gaussian::of(&features)?)?;
        let s = &line.settings;
        eprintln!(
            "{place} {} {} {} × {} {} {}: {:.0} block passes, {:.3} s for all, FD {:.2}, KID {:.4}",
            line.model,
            s.sampler,
            s.steps,
            s.budget,
            s.allocation,
            s.reuse,
            line.block_passes,
            line.seconds * line.num as f64,
            line.fd,
            line.kid
        );
        line.append(self.out)
    }
}

/// Whether samples have come to nothing: their solves or pixels are no numbers.
pub(crate) fn is_no_number(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(fpdm_core::Error::NonFinite { .. }))
}

/// Runs `sample` beside threads that score what it hands over; it waits where too much is waiting. A sampler that asks
/// gets told with an error that a distance could not be computed.
pub(crate) fn beside(scorer: &Scorer, sample: impl FnOnce(&dyn Fn(Job) -> Result<()>) -> Result<()>) -> Result<()> {
    let (sender, receiver) = sync_channel::<Job>(1);
    let (receiver, failed) = (Mutex::new(receiver), AtomicBool::new(false));
    let work = || {
        let mut end = Ok(());
        loop {
            let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return end };
            // After a failure jobs are taken all the same, so that nobody waits for room.
            if !failed.load(Ordering::Relaxed)
                && let Err(error) = scorer.score(job)
            {
                failed.store(true, Ordering::Relaxed);
                end = Err(error);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let sampled = sample(&|job| {
            ensure!(!failed.load(Ordering::Relaxed), "a distance could not be computed");
            sender.send(job).map_err(|_| anyhow!("nobody computes distances any more"))
        });
        drop(sender);
        for thread in threads {
            // What went wrong there is why sampling has ended.
            thread.join().map_err(|_| anyhow!("a thread that computes distances has panicked"))??;
        }
        sampled
    })
}
