//! Host noise: the same for everyone who asks for the same, whatever is asked for beside it.

use candle_core::{DType, Device, Tensor};
use fpdm_core::Result;
use fpdm_core::rng::{self, Stream};
use rand::RngCore;

const STREAMS: [Stream; 7] =
    [Stream::Noise, Stream::Label, Stream::Init, Stream::Solver, Stream::Data, Stream::Time, Stream::Drop];

fn batch(indices: &[u64]) -> Result<Vec<Vec<f32>>> {
    Ok(rng::normal_batch(9, Stream::Noise, indices, (2, 3), DType::F32, &Device::Cpu)?.flatten_from(1)?.to_vec2()?)
}

#[test]
fn a_sample_depends_on_its_index_alone() -> Result<()> {
    let all = batch(&[0, 1, 2, 3, 4, 5, 6, 7])?;
    for i in 0..8 {
        assert_eq!(batch(&[i])?[0], all[i as usize]);
    }
    assert_eq!(batch(&[7, 2])?, [all[7].clone(), all[2].clone()]);
    assert!(all.iter().enumerate().all(|(i, a)| all[..i].iter().all(|b| a != b)));
    assert!(batch(&[]).is_err());
    Ok(())
}

#[test]
fn noise_at_every_step_goes_on_where_it_was() -> Result<()> {
    let mut rngs: Vec<_> = [4, 5].iter().map(|&i| rng::stream(9, Stream::Noise, i)).collect();
    let first = rng::normal_each(&mut rngs, 3, DType::F64, &Device::Cpu)?;
    let second = rng::normal_each(&mut rngs, 3, DType::F64, &Device::Cpu)?;
    let whole = rng::normal_batch(9, Stream::Noise, &[4, 5], 6, DType::F64, &Device::Cpu)?;
    assert_eq!(Tensor::cat(&[first, second], 1)?.to_vec2::<f64>()?, whole.to_vec2::<f64>()?);
    Ok(())
}

#[test]
fn seeds_streams_and_indices_differ() {
    let mut seen = std::collections::HashSet::new();
    for seed in 0..4 {
        for stream in STREAMS {
            for index in 0..8 {
                assert!(seen.insert(rng::stream(seed, stream, index).next_u64()), "{seed} {stream:?} {index}");
            }
        }
    }
}

/// These numbers are in every stored result; if this fails, old runs can no longer be repeated.
#[test]
fn numbers_are_the_stored_ones() -> Result<()> {
    assert_eq!(STREAMS.map(|s| s as u64), [1, 2, 3, 4, 5, 6, 7]);
    let mut stream = rng::stream(42, Stream::Noise, 7);
    assert_eq!([stream.next_u64(), stream.next_u64()], [7539917078144382605, 9099307048230913251]);
    let z = rng::normal(4, &mut rng::stream(42, Stream::Noise, 7), DType::F64, &Device::Cpu)?.to_vec1::<f64>()?;
    for (got, want) in
        z.iter().zip([-0.26426961524485415, -0.010671728611331786, 0.5486934769139875, -0.04610128892800173])
    {
        assert!((got - want).abs() < 1e-12, "{z:?}");
    }
    let u = rng::uniform(2, &mut rng::stream(42, Stream::Noise, 7), DType::F64, &Device::Cpu)?.to_vec1::<f64>()?;
    for (got, want) in u.iter().zip([0.40873972382423474, 0.4932744234902309]) {
        assert!((got - want).abs() < 1e-12, "{u:?}");
    }
    Ok(())
}

#[test]
fn moments_are_those_of_the_distribution() -> Result<()> {
    let n = 200_000;
    let moments = |t: Tensor| -> Result<(f64, f64)> {
        let mean = t.mean_all()?.to_scalar::<f64>()?;
        Ok((mean, (t - mean)?.sqr()?.mean_all()?.to_scalar()?))
    };
    let mut rng = rng::stream(0, Stream::Noise, 0);
    let (mean, var) = moments(rng::normal(n, &mut rng, DType::F64, &Device::Cpu)?)?;
    assert!(mean.abs() < 0.01 && (var - 1.).abs() < 0.015, "normal {mean} {var}");
    let u = rng::uniform(n, &mut rng, DType::F64, &Device::Cpu)?;
    assert!(u.min_all()?.to_scalar::<f64>()? >= 0. && u.max_all()?.to_scalar::<f64>()? < 1.);
    let (mean, var) = moments(u)?;
    assert!((mean - 0.5).abs() < 0.005 && (var - 1. / 12.).abs() < 0.001, "uniform {mean} {var}");
    Ok(())
}

#[test]
fn another_dtype_is_the_same_rounded() -> Result<()> {
    let draw = |dtype| rng::normal(64, &mut rng::stream(5, Stream::Init, 0), dtype, &Device::Cpu);
    let exact = draw(DType::F64)?;
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        assert_eq!(draw(dtype)?.to_dtype(DType::F64)?.to_vec1::<f64>()?, {
            exact.to_dtype(dtype)?.to_dtype(DType::F64)?.to_vec1::<f64>()?
        });
    }
    assert!(draw(DType::U8).is_err());
    // A generator behind a trait object draws the same.
    let mut rng = rng::stream(5, Stream::Init, 0);
    let rng: &mut dyn RngCore = &mut rng;
    assert_eq!(rng::normal(64, rng, DType::F64, &Device::Cpu)?.to_vec1::<f64>()?, exact.to_vec1::<f64>()?);
    Ok(())
}
