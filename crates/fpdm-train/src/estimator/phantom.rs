use std::sync::Arc;

use fpdm_core::{Budget, Picard, Problem, Result, Solver, solve};
use rand::RngCore;

use super::trajectory::trajectory;
use super::{Estimate, GradientEstimator, Memory, finite_number};

/// Phantom gradients: a solve without gradient, then `k` damped iterations with.
///
/// On `z ↦ a·z + b`, with `λ = 1 − damp`, the estimate of `dz/db` is `λ·Σ_{j<k} (1 − λ + λ·a)ʲ`.
///
/// # Reference
/// Geng et al. 2021, arXiv 2111.05177, equations 8 and 9 (unrolling-based).
///
/// # Cost
/// `without_grad + with_grad` applications, `with_grad` of them in the graph.
#[derive(Clone)]
pub struct Phantom {
    /// Iterations without gradient.
    pub without_grad: usize,
    /// Iterations with gradient `k`, at least 1.
    pub with_grad: usize,
    /// The share of the old point that is kept, in [0, 1): `1 − λ` of the paper.
    pub damp: f64,
    /// Iterates the part without gradient.
    pub solver: Arc<dyn Solver>,
    /// What is kept for the backward pass.
    pub memory: Memory,
}

impl Default for Phantom {
    /// Six iterations and five, half damped.
    fn default() -> Self {
        let solver = Arc::new(Picard::default());
        Self { without_grad: 6, with_grad: 5, damp: 0.5, solver, memory: Memory::Store }
    }
}

impl GradientEstimator for Phantom {
    fn estimate(&self, problem: &Problem, _: &mut dyn RngCore) -> Result<Estimate> {
        finite_number("damp", self.damp, 0. ..1.)?;
        let n = self.without_grad;
        let z = solve(&*self.solver, &*problem.frozen, problem.z0.detach(), &mut Budget(n))?.z;
        trajectory(problem, &z, (n, self.with_grad), self.damp, self.memory)
    }
}
