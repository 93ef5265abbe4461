use std::sync::Arc;

use fpdm_core::{Error, Picard, Problem, Result, Solver};
use rand::RngCore;

use super::{Estimate, GradientEstimator, check_float, vjp};

/// Backpropagation through every iteration of a solver, as far as its own arithmetic is in the graph.
///
/// With plain iteration it is S-JFB with `n = 0` and `m = iterations`.
///
/// # Reference
/// Werbos 1990, "Backpropagation through time"; for solvers that mix old points, Bai et al. 2022, arXiv 2204.08442,
/// section 3, compares it with cheaper estimates.
///
/// # Cost
/// `iterations` applications, all of them and the solver's work in one graph.
#[derive(Clone)]
pub struct Unrolled {
    /// Applications, at least 1.
    pub iterations: usize,
    /// Whose iterates are differentiated. What a solver detaches or computes on the host is a constant of the graph:
    /// for Anderson and Broyden the old points and their weights.
    pub solver: Arc<dyn Solver>,
}

impl Default for Unrolled {
    /// Six plain iterations.
    fn default() -> Self {
        Self { iterations: 6, solver: Arc::new(Picard::default()) }
    }
}

impl GradientEstimator for Unrolled {
    fn estimate(&self, problem: &Problem, _: &mut dyn RngCore) -> Result<Estimate> {
        check_float(&problem.z0)?;
        let iterates = self.solver.iterate(&*problem.map, problem.z0.detach());
        let iterates = iterates.take(self.iterations).collect::<Result<Vec<_>>>()?;
        let Some(last) = iterates.last().cloned() else {
            return Err(Error::config("iterations", "0 iterations have no gradient; use 1 or more"));
        };
        let points: Vec<_> = iterates.into_iter().map(|it| it.next).collect();
        Estimate::new(0, points.clone(), last, points.len(), move |cotangents, sink| {
            let pairs: Vec<_> = points.iter().zip(cotangents).filter_map(|(y, g)| Some((y, g.as_ref()?))).collect();
            if pairs.is_empty() { Ok(()) } else { sink(vjp(&pairs)?) }
        })
    }
}
