//! How gradients are estimated, from the command line.

use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use fpdm_core::dit::Architecture;
use fpdm_core::{Anderson, Broyden, Picard, Solver};
use fpdm_train::{Effort, GradientEstimator, Implicit, Jfb, Memory, MultiStepJfb, Phantom, StochasticJfb, Unrolled};
use serde_json::{Value, json};

/// How gradients are estimated.
#[derive(Args, Debug)]
pub(crate) struct GradientOptions {
    /// sjfb, jfb, multistep, phantom, implicit or unrolled; a dit has the one gradient that it has.
    #[arg(long, default_value = "sjfb")]
    pub estimator: Estimator,
    /// Iterations without gradient: at most (sjfb), exactly (jfb, multistep, phantom), or of the solve (implicit).
    #[arg(long, default_value_t = 6)]
    pub without_grad: usize,
    /// Iterations with gradient: at most (sjfb), exactly (multistep, phantom, unrolled), or of the adjoint's solve
    /// (implicit).
    #[arg(long, default_value_t = 6)]
    pub with_grad: usize,
    /// The share of the old point that is kept (phantom).
    #[arg(long, default_value_t = 0.5)]
    pub damp: f64,
    /// The tolerance of both solves (implicit); 0 spends every iteration.
    #[arg(long, default_value_t = 0.)]
    pub rel: f64,
    /// picard, anderson or broyden: iterates without gradient, and all iterations of implicit and unrolled.
    #[arg(long, default_value = "picard")]
    pub solver: SolverName,
    /// Computes iterations again, so many at a time, instead of storing their graphs (sjfb, multistep, phantom).
    #[arg(long)]
    pub recompute: Option<usize>,
}

/// The names of the estimators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Estimator {
    /// Stochastic Jacobian-free backpropagation.
    Sjfb,
    /// One iteration with gradient.
    Jfb,
    /// A fixed number of iterations with gradient.
    Multistep,
    /// Damped iterations with gradient.
    Phantom,
    /// The gradient of the fixed point.
    Implicit,
    /// Backpropagation through the solver.
    Unrolled,
}

/// The names of the solvers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SolverName {
    /// Plain iteration.
    Picard,
    /// Anderson's method.
    Anderson,
    /// Broyden's method.
    Broyden,
}

impl GradientOptions {
    /// The estimator for a network.
    pub(crate) fn estimator(&self, architecture: Architecture) -> Result<Box<dyn GradientEstimator>> {
        let takes_memory = matches!(self.estimator, Estimator::Sjfb | Estimator::Multistep | Estimator::Phantom);
        ensure!(
            self.recompute.is_none() || (takes_memory && architecture == Architecture::Fpdm),
            "--recompute is for the estimators sjfb, multistep and phantom of an fpdm"
        );
        let solver: Arc<dyn Solver> = match self.solver {
            SolverName::Picard => Arc::new(Picard::default()),
            SolverName::Anderson => Arc::new(Anderson::default()),
            SolverName::Broyden => Arc::new(Broyden::default()),
        };
        if architecture == Architecture::Dit {
            // One application is the whole network.
            return Ok(Box::new(MultiStepJfb { without_grad: 0, with_grad: 1, ..Default::default() }));
        }
        ensure!(self.with_grad > 0, "--with-grad: 0 iterations have no gradient; use 1 or more");
        let (without_grad, with_grad) = (self.without_grad, self.with_grad);
        let memory = self.recompute.map_or(Memory::Store, Memory::Recompute);
        Ok(match self.estimator {
            Estimator::Sjfb => {
                Box::new(StochasticJfb { without_grad: 0..=without_grad, with_grad: 1..=with_grad, solver, memory })
            }
            Estimator::Jfb => Box::new(Jfb { without_grad, solver }),
            Estimator::Multistep => Box::new(MultiStepJfb { without_grad, with_grad, solver, memory }),
            Estimator::Phantom => Box::new(Phantom { without_grad, with_grad, damp: self.damp, solver, memory }),
            Estimator::Implicit => {
                ensure!(without_grad > 0, "--without-grad: a solve of 0 iterations has no fixed point; use 1 or more");
                let effort = |budget| Effort { solver: solver.clone(), budget, rel: self.rel };
                Box::new(Implicit { forward: effort(without_grad), adjoint: effort(with_grad) })
            }
            Estimator::Unrolled => Box::new(Unrolled { iterations: with_grad, solver }),
        })
    }

    /// The same in words, for a model card.
    pub(crate) fn words(&self, architecture: Architecture) -> String {
        let Self { without_grad: n, with_grad: m, .. } = self;
        match (architecture, self.estimator) {
            (Architecture::Dit, _) => "backpropagation".into(),
            (_, Estimator::Sjfb) => format!("stochastic Jacobian-free backpropagation (n ≤ {n}, 1 ≤ m ≤ {m})"),
            (_, Estimator::Jfb) => format!("Jacobian-free backpropagation (n = {n}, m = 1)"),
            (_, Estimator::Multistep) => format!("Jacobian-free backpropagation (n = {n}, m = {m})"),
            (_, Estimator::Phantom) => format!("phantom gradients (n = {n}, k = {m}, damping {})", self.damp),
            (_, Estimator::Implicit) => format!("the implicit gradient ({n} iterations, {m} of the adjoint)"),
            (_, Estimator::Unrolled) => format!("{m} iterations unrolled"),
        }
    }

    /// What of it must be the same on resuming. What is stored and what computed again changes nothing but rounding.
    pub(crate) fn description(&self, architecture: Architecture) -> Value {
        if architecture == Architecture::Dit {
            return Value::Null;
        }
        let Self { without_grad, with_grad, damp, rel, .. } = self;
        let name = format!("{:?}", self.estimator).to_lowercase();
        let mut told =
            json!({ "estimator": name, "with_grad": with_grad, "solver": format!("{:?}", self.solver).to_lowercase() });
        if self.estimator != Estimator::Unrolled {
            told["without_grad"] = json!(without_grad);
        }
        match self.estimator {
            Estimator::Phantom => told["damp"] = json!(damp),
            Estimator::Implicit => told["rel"] = json!(rel),
            _ => {}
        }
        told
    }
}
