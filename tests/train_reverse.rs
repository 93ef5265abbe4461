//! The way back that is written out gives what autograd gives through the map's applications: every gradient, for one
//! and several implicit blocks, stored and recomputed, with losses on one and on all iterates.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use fpdm_core::dit::{Config, Fpdit, Labels, Size, init, perturb_gates};
use fpdm_core::rng::{Stream, normal_batch, stream};
use fpdm_core::{ImplicitModel, params};
use fpdm_train::{GradientEstimator, Memory, MultiStepJfb};

fn network(group: usize, labels: Labels) -> fpdm_core::Result<(VarMap, Fpdit)> {
    let config = Config {
        input_size: [4, 6],
        hidden_size: 24,
        num_heads: 3,
        group,
        labels,
        pre_post_timestep_conditioning: true,
        ..Config::fpdm(Size::S, 2)
    };
    let weights = init(&config, 3, DType::F64, &Device::Cpu)?;
    perturb_gates(&config, &weights, 4, 0.3)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, DType::F64, &Device::Cpu))?;
    Ok((weights, model))
}

/// The solution and the gradient of every parameter.
fn gradients(
    (weights, model): &(VarMap, Fpdit),
    by_hand: bool,
    memory: Memory,
    all: bool,
) -> fpdm_core::Result<(Tensor, BTreeMap<String, Tensor>)> {
    let x = normal_batch(5, Stream::Data, &[0, 1], (4, 4, 6), DType::F64, &Device::Cpu)?;
    let (t, y) = (Tensor::new(&[700f64, 20.], &Device::Cpu)?, Tensor::new(&[0u32, 2], &Device::Cpu)?);
    let mut problem = model.prepare(&x, &t, &y)?;
    assert!(problem.reversible.is_some(), "the CPU has kernels for this");
    if !by_hand {
        problem.reversible = None;
    }
    let estimator = MultiStepJfb { without_grad: 2, with_grad: 5, memory, ..Default::default() };
    let found = estimator.estimate(&problem, &mut stream(0, Stream::Solver, 0))?;
    let mut cotangents = vec![None; found.iterates.len()];
    for (i, cotangent) in cotangents.iter_mut().enumerate() {
        if all || i == 4 {
            let shape = found.solution().dims();
            *cotangent =
                Some(normal_batch(6 + i as u64, Stream::Data, &[0, 1], &shape[1..], DType::F64, &Device::Cpu)?);
        }
    }
    let vars = params::named(weights);
    let mut sums = BTreeMap::new();
    found.pullback(&cotangents, &mut |mut grads| {
        for (name, var) in &vars {
            if let Some(g) = grads.remove(var) {
                let sum = match sums.remove(name) {
                    Some(before) => (g.detach() + before)?,
                    None => g.detach(),
                };
                sums.insert(name.clone(), sum);
            }
        }
        Ok(())
    })?;
    Ok((found.solution().clone(), sums))
}

fn norm(t: &Tensor) -> Result<f64> {
    t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>()
}

#[test]
fn by_hand_equals_autograd() -> fpdm_core::Result<()> {
    for (group, labels) in [(1, Labels::Classes(3)), (3, Labels::Classes(3)), (1, Labels::None)] {
        let network = network(group, labels)?;
        for all in [false, true] {
            let (z, expected) = gradients(&network, false, Memory::Store, all)?;
            for memory in [Memory::Store, Memory::Recompute(1), Memory::Recompute(2), Memory::Recompute(9)] {
                let (found, got) = gradients(&network, true, memory, all)?;
                assert!(norm(&(found - &z)?)? < 1e-12);
                assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                for (name, g) in &expected {
                    let error = norm(&(&got[name] - g)?)? / norm(g)?.max(1e-3);
                    assert!(error < 1e-12, "group {group} {memory:?} all {all}: {name} off by {error}");
                }
            }
        }
    }
    Ok(())
}
