//! What a sampler asks: a network, solved within a budget.

mod warm_start;
mod watch;

use candle_core::{DType, Tensor};
use fpdm_core::{Denoiser, Error, ImplicitModel, Level, Parameterization, Prediction, Result, Solver, solve};

use self::warm_start::Memory;
pub use self::warm_start::WarmStart;
use self::watch::Watch;
use crate::{Account, AllocationPolicy, Cost, Ledger, Plan, SolveRecord, Work};

/// A network and how it is to be understood.
#[derive(Clone, Copy)]
pub struct Network<'a> {
    /// The network.
    pub model: &'a dyn ImplicitModel,
    /// What it was trained to predict.
    pub parameterization: Parameterization,
    /// The dtype of its weights; latents are converted on the way in and back on the way out.
    pub dtype: DType,
    /// What its parts cost.
    pub work: Work,
}

impl Network<'_> {
    /// Refuses a plan with a level at which the prediction says too little: `eps` on pure noise.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the level and the fix.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        for step in plan.steps() {
            let (a, b) = self.parameterization.coefficients(step.from);
            let (alpha, sigma) = (step.from.alpha, step.from.sigma);
            if alpha * b - sigma * a == 0. {
                let why = format!(
                    "`{}` says nothing of x0 at {:?}; use weights that predict `v`, or a schedule or spacing that does \
                     not begin there",
                    self.parameterization, step.from
                );
                return Err(Error::config("prediction", why));
            }
        }
        Ok(())
    }

    /// The raw output in `x`'s dtype, split into prediction and learned variance.
    fn outputs(&self, x: &Tensor, output: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let (channels, got) = (x.dim(1)?, output.dim(1)?);
        let output = output.to_dtype(x.dtype())?;
        match got {
            n if n == channels => Ok((output, None)),
            n if n == 2 * channels => Ok((output.narrow(1, 0, channels)?, Some(output.narrow(1, channels, channels)?))),
            _ => Err(Error::shape("channels of the network's output", (channels, "or", 2 * channels), got)),
        }
    }
}

/// Goes beyond the last iterate of a solve, away from an earlier one: guidance without a second solve.
///
/// With the readouts `D_early` and `D_last` of two iterates of the same solve, the answer is
/// `D_early + scale·(D_last − D_early)`.
///
/// # Reference
///
/// Zhou et al. 2025, arXiv 2512.24176, whose early exit is an early iterate here.
///
/// # Cost
///
/// One more readout a solve that goes beyond `early`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IterationGuidance {
    /// Applications of the early iterate, at least 1. Shorter solves are not guided.
    pub early: usize,
    /// 1 is the last iterate.
    pub scale: f64,
}

/// A network with labels bound, one solve a call, for one trajectory of one batch.
///
/// It remembers its last solutions, so it is made anew for every trajectory and every branch of guidance.
///
/// # Errors
///
/// [`Error::NonFinite`] where a solve's last residual is no number; [`Error::Config`] where it is asked more often than
/// its [`Ledger`] has solves.
///
/// # Cost
///
/// On top of the network: one reduction and one synchronisation a solve for the residual.
pub struct FixedPointDenoiser<'a> {
    /// Where solves start.
    pub warm_start: WarmStart,
    /// Extrapolation from an earlier iterate.
    pub iteration_guidance: Option<IterationGuidance>,
    network: Network<'a>,
    labels: Tensor,
    solver: &'a dyn Solver,
    policy: Box<dyn AllocationPolicy + 'a>,
    ledger: Ledger,
    memory: Memory,
    cost: Cost,
}

impl<'a> FixedPointDenoiser<'a> {
    /// Fresh starts and no iteration guidance. `labels` are the network's `y`, `(B)` or `(B, L)`.
    pub fn new(
        network: Network<'a>,
        labels: Tensor,
        solver: &'a dyn Solver,
        policy: Box<dyn AllocationPolicy + 'a>,
        ledger: Ledger,
    ) -> Self {
        Self {
            warm_start: WarmStart::Fresh,
            iteration_guidance: None,
            network,
            labels,
            solver,
            policy,
            ledger,
            memory: Memory::default(),
            cost: Cost::default(),
        }
    }

    /// What may be spent and what was.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The last solution, where the next solve can start; `None` with fresh starts, which keep none.
    pub fn solution(&self) -> Option<&Tensor> {
        self.memory.last()
    }
}

impl Denoiser for FixedPointDenoiser<'_> {
    fn denoise(&mut self, x: &Tensor, level: Level) -> Result<Prediction> {
        let allowed = self.ledger.allow(self.policy.propose(&self.ledger));
        if allowed == 0 {
            let why = format!("all {} solves are done; give the ledger one for every evaluation", self.ledger.solves());
            return Err(Error::config("budget", why));
        }
        let dtype = if self.network.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let t = Tensor::full(level.t, x.dim(0)?, &candle_core::Device::Cpu)?.to_dtype(dtype)?.to_device(x.device())?;
        let problem = self.network.model.prepare(&x.to_dtype(self.network.dtype)?, &t, &self.labels)?;
        let z0 = match self.warm_start {
            WarmStart::Fresh => problem.z0.clone(),
            warm => self.memory.start(warm, level.t, &problem.z0)?,
        };
        let early = self.iteration_guidance.map(|g| g.early);
        let mut watch = Watch::new(allowed, self.policy.threshold(), early);
        let solution = solve(self.solver, &*problem.frozen, z0, &mut watch)?;
        let record =
            SolveRecord { t: level.t, applications: solution.applications, residual: watch.last.1, rate: watch.rate() };
        if !(1..=allowed).contains(&solution.applications) {
            let why = format!(
                "{} applications where 1 to {allowed} are allowed; one item, one application",
                solution.applications
            );
            return Err(Error::config("solver", why));
        }
        self.policy.observe(&record, &self.ledger);
        self.ledger.book(solution.applications);

        let (mut main, log_var) = self.network.outputs(x, &problem.readout(&solution.z)?.detach())?;
        let mut readouts = 1;
        if let (Some(guidance), Some(z)) = (self.iteration_guidance, &watch.kept)
            && solution.applications > guidance.early
        {
            let (weak, _) = self.network.outputs(x, &problem.readout(z)?.detach())?;
            main = (&weak + ((main - &weak)? * guidance.scale)?)?;
            readouts += 1;
        }
        self.cost.add(&self.network.work, record, readouts);
        if self.warm_start != WarmStart::Fresh {
            self.memory.keep(level.t, solution.z);
        }
        let (x0, eps) = self.network.parameterization.split(&[level], x, &main)?;
        Ok(Prediction { x0, eps, log_var })
    }
}

impl Account for FixedPointDenoiser<'_> {
    fn cost(&self) -> Cost {
        self.cost.clone()
    }
}
