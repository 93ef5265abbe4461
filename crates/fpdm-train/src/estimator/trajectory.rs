use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Tensor, Var};
use fpdm_core::{Error, FixedPointMap, Iterate, Problem, Result, Reversible};
use serde::{Deserialize, Serialize};

use super::{Estimate, check_float, vjp};

/// What is kept of the iterations with gradient until the backward pass.
///
/// The gradients are the same. With `m` iterations, storing keeps `m` graphs; recomputing keeps `m / segment` points
/// and one segment's graph, and pays one more application each; where the map has no way back of its own
/// ([`Problem::reversible`]), also one more walk back through the layers before the implicit part for every segment.
///
/// # Reference
/// Chen, Xu, Zhang and Guestrin 2016, arXiv 1604.06174, section 4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// The graph of every iteration.
    #[default]
    Store,
    /// The first point of every so many iterations, at least 1; the rest is computed again.
    Recompute(usize),
}

/// `z ↦ (1 − damp)·f(z) + damp·z`, which needs nothing but the last point.
struct Step {
    map: Arc<dyn FixedPointMap>,
    damp: f64,
}

impl Step {
    fn apply(&self, z: &Tensor) -> Result<(Tensor, Tensor)> {
        let fz = self.map.apply(z)?;
        let next = match self.damp {
            0. => fz.clone(),
            damp => ((&fz * (1. - damp))? + (z * damp)?)?,
        };
        Ok((fz, next))
    }
}

/// A few steps in one graph that starts at a variable of its own.
struct Graph {
    start: Var,
    points: Vec<Tensor>,
    last: Iterate,
}

impl Graph {
    fn new(step: &Step, start: &Tensor, len: usize) -> Result<Self> {
        let start = Var::from_tensor(start)?;
        let (mut z, mut points) = (start.as_tensor().clone(), Vec::with_capacity(len));
        let mut last = None;
        for _ in 0..len {
            let (fz, next) = step.apply(&z)?;
            points.push(next.clone());
            last = Some(Iterate { z, fz, next: next.clone() });
            z = next;
        }
        let last = last.ok_or_else(|| Error::config("with_grad", "0 iterations have no gradient; use 1 or more"))?;
        Ok(Self { start, points, last })
    }
}

/// `m` damped steps with gradient from `start`, which no gradient passes.
pub(super) fn trajectory(
    problem: &Problem,
    start: &Tensor,
    (n, m): (usize, usize),
    damp: f64,
    memory: Memory,
) -> Result<Estimate> {
    check_float(start)?;
    let start = start.detach();
    if let (0., Some(map)) = (damp, &problem.reversible) {
        return reversed(map.clone(), &start, (n, m), memory);
    }
    let tracked = Step { map: problem.map.clone(), damp };
    match memory {
        Memory::Store => {
            let graph = Graph::new(&tracked, &start, m)?;
            let (points, last) = (graph.points.clone(), graph.last.clone());
            Estimate::new(n, points, last, m, move |cotangents, sink| {
                let pairs = graph.points.iter().zip(cotangents).filter_map(|(y, g)| Some((y, g.as_ref()?)));
                let pairs: Vec<_> = pairs.collect();
                if pairs.is_empty() { Ok(()) } else { sink(vjp(&pairs)?) }
            })
        }
        Memory::Recompute(0) => Err(Error::config("memory", "a segment of 0 iterations recomputes nothing; use 1")),
        Memory::Recompute(segment) => {
            let untracked = Step { map: problem.frozen.clone(), damp };
            let (mut z, mut points, mut last) = (start.clone(), Vec::with_capacity(m), None);
            for _ in 0..m {
                let (fz, next) = untracked.apply(&z)?;
                points.push(next.clone());
                last = Some(Iterate { z, fz, next: next.clone() });
                z = next;
            }
            let last =
                last.ok_or_else(|| Error::config("with_grad", "0 iterations have no gradient; use 1 or more"))?;
            let starts: Vec<Tensor> = std::iter::once(&start).chain(&points).step_by(segment).cloned().collect();
            Estimate::new(n, points, last, m, move |cotangents, sink| {
                let mut carried: Option<Tensor> = None;
                for (i, cotangents) in cotangents.chunks(segment).enumerate().rev() {
                    if carried.is_none() && cotangents.iter().all(Option::is_none) {
                        continue;
                    }
                    let graph = Graph::new(&tracked, &starts[i], cotangents.len())?;
                    let given = graph.points.iter().zip(cotangents).filter_map(|(y, g)| Some((y, g.as_ref()?)));
                    let pairs: Vec<_> = given.chain(graph.points.last().zip(carried.as_ref())).collect();
                    let mut grads = vjp(&pairs)?;
                    // Candle tracks the gradients of variables: undetached, the next segment would walk this graph.
                    carried = grads.remove(&graph.start).map(|g| g.detach());
                    sink(grads)?;
                }
                Ok(())
            })
        }
    }
}

/// `m` steps of a map that carries gradients back itself.
fn reversed(map: Arc<dyn Reversible>, start: &Tensor, (n, m): (usize, usize), memory: Memory) -> Result<Estimate> {
    let segment = match memory {
        Memory::Store => m,
        Memory::Recompute(0) => {
            return Err(Error::config("memory", "a segment of 0 iterations recomputes nothing; use 1"));
        }
        Memory::Recompute(segment) => segment,
    };
    let (mut z, mut points, mut kept) = (start.clone(), Vec::with_capacity(m), Vec::new());
    let mut last = None;
    for _ in 0..m {
        let (fz, step) = map.record(&z)?;
        if memory == Memory::Store {
            kept.push(step);
        }
        points.push(fz.clone());
        last = Some(Iterate { z, fz: fz.clone(), next: fz.clone() });
        z = fz;
    }
    let last = last.ok_or_else(|| Error::config("with_grad", "0 iterations have no gradient; use 1 or more"))?;
    let starts: Vec<Tensor> = std::iter::once(start).chain(&points).step_by(segment).cloned().collect();
    // The way back uses up what was kept; where there is nothing, or a second walk, it is computed again.
    let kept = Mutex::new(kept);
    Estimate::new(n, points, last, m, move |cotangents, sink| {
        let mut way = map.begin()?;
        let mut carried: Option<Tensor> = None;
        for (i, cotangents) in cotangents.chunks(segment).enumerate().rev() {
            if carried.is_none() && cotangents.iter().all(Option::is_none) {
                continue;
            }
            let mut steps = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
            let mut z = starts[i].clone();
            for _ in steps.len()..cotangents.len() {
                let (fz, step) = map.record(&z)?;
                steps.push(step);
                z = fz;
            }
            drop(z);
            for (step, cotangent) in steps.into_iter().zip(cotangents).rev() {
                carried = match (carried.take(), cotangent) {
                    (Some(a), Some(b)) => Some((a + b)?),
                    (a, b) => a.or_else(|| b.clone()),
                };
                carried = carried.map(|g| way.pull(step, &g)).transpose()?;
            }
        }
        way.finish(sink)
    })
}
