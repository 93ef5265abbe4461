use std::sync::Arc;

use candle_core::{Tensor, Var};
use fpdm_core::{Anderson, Budget, Error, Iterate, Problem, Result, Solver, Tolerance, solve};
use rand::RngCore;

use super::{Estimate, GradientEstimator, check_float, vjp};

/// How hard a solve tries.
#[derive(Clone)]
pub struct Effort {
    /// Iterates the solve.
    pub solver: Arc<dyn Solver>,
    /// Applications at most, at least 1.
    pub budget: usize,
    /// Stops at `‖f(z) − z‖ ≤ rel·‖f(z)‖`; with 0 the budget is always spent and nothing is measured.
    pub rel: f64,
}

impl Default for Effort {
    /// Anderson's method, 30 applications, 1e-4.
    fn default() -> Self {
        Self { solver: Arc::new(Anderson::default()), budget: 30, rel: 1e-4 }
    }
}

impl Effort {
    fn solve(&self, field: &str, f: &dyn fpdm_core::FixedPointMap, z0: Tensor) -> Result<fpdm_core::Solution> {
        if self.budget == 0 {
            return Err(Error::config(field, "a budget of 0 solves nothing; use 1 or more"));
        }
        match self.rel {
            0. => solve(&*self.solver, f, z0, &mut Budget(self.budget)),
            rel => {
                let tolerance = Tolerance { rel, ..Default::default() };
                solve(&*self.solver, f, z0, &mut (Budget(self.budget), tolerance))
            }
        }
    }
}

/// The gradient of the fixed point itself, by the implicit function theorem.
///
/// With `J = ∂f/∂z` at the solution `z*` and `g` the gradient there, the adjoint equation `u = g + Jᵀu` is solved by
/// any solver, and `u` is carried through one application of `f`. On `z ↦ a·z + b` the estimate of `dz/db` is
/// `1/(1 − a)`.
///
/// # Reference
/// Bai, Kolter and Koltun 2019, arXiv 1909.01377, Theorem 1 and equation 12.
///
/// # Cost
/// `forward.budget` applications without graph and one with; backward, one vector-Jacobian product an adjoint
/// iteration. Candle cannot prune a backward pass, so each of those also costs the gradients of the weights and a walk
/// through the layers before the implicit part.
#[derive(Clone, Default)]
pub struct Implicit {
    /// The solve for `z*`.
    pub forward: Effort,
    /// The solve for `u`.
    pub adjoint: Effort,
}

impl GradientEstimator for Implicit {
    fn estimate(&self, problem: &Problem, _: &mut dyn RngCore) -> Result<Estimate> {
        check_float(&problem.z0)?;
        let found = self.forward.solve("forward.budget", &*problem.frozen, problem.z0.detach())?;
        let point = Var::from_tensor(&found.z.detach())?;
        let image = problem.map.apply(&point)?;
        let last = Iterate { z: found.z.clone(), fz: image.clone(), next: image.clone() };
        let adjoint = self.adjoint.clone();
        Estimate::new(found.applications, vec![image.clone()], last, 1, move |cotangents, sink| {
            let [Some(g)] = cotangents else { return Ok(()) };
            let g = g.detach();
            let step = |u: &Tensor| -> Result<Tensor> {
                let product = vjp(&[(&image, u)])?.remove(&point).map(|p| p.detach());
                match product {
                    Some(product) => Ok((&g + product)?),
                    None => Ok(g.clone()), // f ignores z
                }
            };
            let u = adjoint.solve("adjoint.budget", &step, g.clone())?.z;
            sink(vjp(&[(&image, &u)])?)
        })
    }
}
