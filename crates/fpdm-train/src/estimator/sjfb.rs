use std::ops::RangeInclusive;
use std::sync::Arc;

use fpdm_core::{Budget, Error, Picard, Problem, Result, Solver, solve};
use rand::{Rng, RngCore};

use super::trajectory::trajectory;
use super::{Estimate, GradientEstimator, Memory};

/// Stochastic Jacobian-free backpropagation: `n ~ U[0, N]` iterations without gradient, then `m ~ U[1, M]` with.
///
/// On `z ↦ a·z + b` the estimate of `dz/db` is `Σ_{j<m} aʲ`, the truncated Neumann series of `1/(1 − a)`. Gradient
/// reaches the layers before the implicit part through the injection alone, never through the starting point.
///
/// # Reference
/// Bai and Melas-Kyriazi 2024, arXiv 2401.08741, Algorithm 1. The default is `M = N = 6`, the best of its Table 3 and
/// 4 beside 3; its main experiments use 12.
///
/// # Cost
/// `n + m` applications, `m` of them in the graph; the rest build none. See [`Memory`].
#[derive(Clone)]
pub struct StochasticJfb {
    /// The numbers of iterations without gradient, both ends included.
    pub without_grad: RangeInclusive<usize>,
    /// The numbers of iterations with gradient, both ends included, from 1.
    pub with_grad: RangeInclusive<usize>,
    /// Iterates the part without gradient; with gradient it is always plain iteration.
    pub solver: Arc<dyn Solver>,
    /// What is kept for the backward pass.
    pub memory: Memory,
}

impl Default for StochasticJfb {
    fn default() -> Self {
        Self { without_grad: 0..=6, with_grad: 1..=6, solver: Arc::new(Picard::default()), memory: Memory::Store }
    }
}

impl StochasticJfb {
    /// Draws `(n, m)`.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty range, or one that allows no iteration with gradient.
    pub fn draw(&self, rng: &mut dyn RngCore) -> Result<(usize, usize)> {
        for (field, range, least) in [("without_grad", &self.without_grad, 0), ("with_grad", &self.with_grad, 1)] {
            if range.is_empty() || *range.start() < least {
                return Err(Error::config(field, format!("{range:?} is no range from {least} upwards")));
            }
        }
        Ok((rng.random_range(self.without_grad.clone()), rng.random_range(self.with_grad.clone())))
    }
}

impl GradientEstimator for StochasticJfb {
    fn estimate(&self, problem: &Problem, rng: &mut dyn RngCore) -> Result<Estimate> {
        let (n, m) = self.draw(rng)?;
        let z = solve(&*self.solver, &*problem.frozen, problem.z0.detach(), &mut Budget(n))?.z;
        trajectory(problem, &z, (n, m), 0., self.memory)
    }
}
