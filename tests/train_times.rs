//! Which times are trained.

use candle_core::{DType, Device, Tensor};
use fpdm_core::dit::Labels;
use fpdm_core::rng::{Stream, stream};
use fpdm_core::{Moments, Result};
use fpdm_train::{Batch, Objective, Times};
use rand::Rng;
use rand_distr::StandardNormal;

fn batch(first: u64, size: usize) -> Result<Batch> {
    let mean = Tensor::zeros((size, 1, 1, 1), DType::F32, &Device::Cpu)?;
    let y = Tensor::zeros(size, DType::U32, &Device::Cpu)?;
    Ok(Batch {
        moments: Moments { std: mean.zeros_like()?, mean },
        y,
        positions: (first..first + size as u64).collect(),
    })
}

#[test]
fn logits_of_times_are_normal() -> Result<()> {
    let (mean, scale) = (0.5, 1.5);
    let objective = Objective { times: Times::LogitNormal { mean, scale }, ..Objective::flow() };
    objective.check()?;
    let draw = objective.draw(&batch(0, 20_000)?, Labels::None, 3)?;
    let logits: Vec<f64> = draw.levels.iter().map(|level| (level.sigma / level.alpha).ln()).collect();
    // The same numbers by the definition, from the published stream.
    for (position, logit) in logits.iter().enumerate().take(100) {
        let u: f64 = stream(3, Stream::Time, position as u64).sample(StandardNormal);
        assert!((logit - (mean + scale * u)).abs() < 1e-9, "{position}: {logit}");
    }
    let count = logits.len() as f64;
    let average = logits.iter().sum::<f64>() / count;
    let variance = logits.iter().map(|l| (l - average).powi(2)).sum::<f64>() / count;
    assert!((average - mean).abs() < 4. * scale / count.sqrt(), "{average}");
    assert!((variance.sqrt() - scale).abs() < 0.04, "{variance}");
    // What a sample gets depends on its position alone.
    let later = objective.draw(&batch(700, 5)?, Labels::None, 3)?;
    assert_eq!(later.levels, draw.levels[700..705]);
    Ok(())
}

#[test]
fn other_times_are_refused() {
    for (mean, scale) in [(f64::NAN, 1.), (0., 0.), (0., -1.), (0., f64::INFINITY)] {
        let objective = Objective { times: Times::LogitNormal { mean, scale }, ..Objective::flow() };
        assert!(objective.check().unwrap_err().to_string().contains("logit"), "{mean} {scale}");
    }
    let learned = Objective { times: Times::Continuous, ..Objective::published().unwrap() };
    assert!(learned.check().unwrap_err().to_string().contains("whole"));
}
