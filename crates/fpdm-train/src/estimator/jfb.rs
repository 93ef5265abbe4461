use std::sync::Arc;

use fpdm_core::{Picard, Problem, Result, Solver};
use rand::RngCore;

use super::{Estimate, GradientEstimator, Memory, StochasticJfb};

/// Jacobian-free backpropagation: a solve without gradient and one iteration with.
///
/// On `z ↦ a·z + b` the estimate of `dz/db` is 1.
///
/// # Reference
/// Fung et al. 2022, arXiv 2103.12803, equation 9.
///
/// # Cost
/// `without_grad + 1` applications, one of them in the graph.
#[derive(Clone)]
pub struct Jfb {
    /// Iterations without gradient.
    pub without_grad: usize,
    /// Iterates the part without gradient.
    pub solver: Arc<dyn Solver>,
}

impl Default for Jfb {
    /// Six iterations and one, by plain iteration.
    fn default() -> Self {
        Self { without_grad: 6, solver: Arc::new(Picard::default()) }
    }
}

impl GradientEstimator for Jfb {
    fn estimate(&self, problem: &Problem, rng: &mut dyn RngCore) -> Result<Estimate> {
        let Self { without_grad, solver } = self.clone();
        MultiStepJfb { without_grad, with_grad: 1, solver, memory: Memory::Store }.estimate(problem, rng)
    }
}

/// Jacobian-free backpropagation with a fixed number of iterations with gradient.
///
/// On `z ↦ a·z + b` the estimate of `dz/db` is `Σ_{j<m} aʲ` with `m = with_grad`.
///
/// # Reference
/// Bai and Melas-Kyriazi 2024, arXiv 2401.08741, section 3.4 and Table 4, "multi-step JFB".
///
/// # Cost
/// `without_grad + with_grad` applications, `with_grad` of them in the graph.
#[derive(Clone)]
pub struct MultiStepJfb {
    /// Iterations without gradient.
    pub without_grad: usize,
    /// Iterations with gradient, at least 1.
    pub with_grad: usize,
    /// Iterates the part without gradient.
    pub solver: Arc<dyn Solver>,
    /// What is kept for the backward pass.
    pub memory: Memory,
}

impl Default for MultiStepJfb {
    /// Six iterations and six, by plain iteration.
    fn default() -> Self {
        Self { without_grad: 6, with_grad: 6, solver: Arc::new(Picard::default()), memory: Memory::Store }
    }
}

impl GradientEstimator for MultiStepJfb {
    fn estimate(&self, problem: &Problem, rng: &mut dyn RngCore) -> Result<Estimate> {
        let (n, m) = (self.without_grad, self.with_grad);
        let solver = self.solver.clone();
        StochasticJfb { without_grad: n..=n, with_grad: m..=m, solver, memory: self.memory }.estimate(problem, rng)
    }
}
