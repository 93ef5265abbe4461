//! What a sampler asks: a network, solved within a budget.

mod each;
mod warm_start;
mod watch;

use candle_core::{DType, Tensor};
use fpdm_core::{Denoiser, Error, ImplicitModel, Level, Parameterization, Prediction, Result, Solver, solve};

use self::each::solve_each;
use self::warm_start::Memory;
pub use self::warm_start::WarmStart;
use self::watch::Watch;
use crate::{Account, AllocationPolicy, Cost, Ledger, Plan, SolveRecord, Uniform, Work};

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

/// A policy, what it may spend and what it has spent.
struct Purse<'a> {
    policy: Box<dyn AllocationPolicy + 'a>,
    ledger: Ledger,
    cost: Cost,
}

impl<'a> Purse<'a> {
    fn new(policy: Box<dyn AllocationPolicy + 'a>, ledger: Ledger) -> Self {
        Self { policy, ledger, cost: Cost::default() }
    }

    /// What looks at the next solve, and how long it may last.
    fn watch(&mut self, keep: Option<usize>) -> Result<Watch> {
        let allowed = self.ledger.allow(self.policy.propose(&self.ledger));
        if allowed == 0 {
            let why = format!("all {} solves are done; give the ledger one for every evaluation", self.ledger.solves());
            return Err(Error::config("budget", why));
        }
        Ok(Watch::new(allowed, self.policy.threshold(), keep))
    }

    /// Books a solve that was read out `readouts` times.
    fn book(&mut self, work: &Work, t: f64, applications: usize, watch: &Watch, readouts: usize) -> Result<()> {
        if !(1..=watch.limit).contains(&applications) {
            let why = format!(
                "{applications} applications where 1 to {} are allowed; one item, one application",
                watch.limit
            );
            return Err(Error::config("solver", why));
        }
        let record = SolveRecord { t, applications, residual: watch.last.1, rate: watch.rate() };
        self.policy.observe(&record, &self.ledger);
        self.ledger.book(applications);
        self.cost.add(work, record, readouts);
        Ok(())
    }
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
/// On top of the network: one reduction and one synchronisation a solve for the residual, or an application of
/// [`per_image`](FixedPointDenoiser::per_image).
pub struct FixedPointDenoiser<'a> {
    /// Where solves start.
    pub warm_start: WarmStart,
    /// Extrapolation from an earlier iterate.
    pub iteration_guidance: Option<IterationGuidance>,
    network: Network<'a>,
    labels: Tensor,
    solver: &'a dyn Solver,
    /// One for the whole batch, or one an image.
    purses: Vec<Purse<'a>>,
    per_image: bool,
    memory: Memory,
}

impl<'a> FixedPointDenoiser<'a> {
    /// One policy for the whole batch, whose images all spend the same; fresh starts and no iteration guidance. `labels`
    /// are the network's `y`, `(B)` or `(B, L)`.
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
            purses: vec![Purse::new(policy, ledger)],
            per_image: false,
            memory: Memory::default(),
        }
    }

    /// A policy and a ledger for every image of the batch: each ends its solves on its own, so that it is the same in
    /// every batch, whatever the policies. An image that has ended leaves the batch until the next solve, if the
    /// network's map can be cut ([`FixedPointMap::rows`](fpdm_core::FixedPointMap::rows)).
    pub fn per_image(
        network: Network<'a>,
        labels: Tensor,
        solver: &'a dyn Solver,
        policies: impl IntoIterator<Item = Box<dyn AllocationPolicy + 'a>>,
        ledger: Ledger,
    ) -> Self {
        let purses = policies.into_iter().map(|policy| Purse::new(policy, ledger.clone())).collect();
        Self { purses, per_image: true, ..Self::new(network, labels, solver, Box::new(Uniform), ledger) }
    }

    /// What may be spent and what was, for each image, or once for all of them.
    pub fn ledgers(&self) -> impl ExactSizeIterator<Item = &Ledger> {
        self.purses.iter().map(|purse| &purse.ledger)
    }

    /// The last solution, where the next solve can start; `None` with fresh starts, which keep none.
    pub fn solution(&self) -> Option<&Tensor> {
        self.memory.last()
    }
}

impl Denoiser for FixedPointDenoiser<'_> {
    fn denoise(&mut self, x: &Tensor, level: Level) -> Result<Prediction> {
        let early = self.iteration_guidance.map(|g| g.early);
        let mut watches = self.purses.iter_mut().map(|purse| purse.watch(early)).collect::<Result<Vec<_>>>()?;
        let dtype = if self.network.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let t = Tensor::full(level.t, x.dim(0)?, &candle_core::Device::Cpu)?.to_dtype(dtype)?.to_device(x.device())?;
        let problem = self.network.model.prepare(&x.to_dtype(self.network.dtype)?, &t, &self.labels)?;
        let z0 = match self.warm_start {
            WarmStart::Fresh => problem.z0.clone(),
            warm => self.memory.start(warm, level.t, &problem.z0)?,
        };
        let (z, applications) = match watches.as_mut_slice() {
            [watch] if !self.per_image => {
                let solution = solve(self.solver, &*problem.frozen, z0, watch)?;
                (solution.z, vec![solution.applications])
            }
            watches => solve_each(self.solver, &problem.frozen, &z0, watches)?,
        };
        // Where nothing was kept, or nothing came after it, there is no early iterate.
        let guided: Vec<bool> = watches
            .iter()
            .zip(&applications)
            .map(|(watch, &n)| watch.kept.is_some() && early.is_some_and(|early| n > early))
            .collect();
        let readouts = |guided: bool| if guided { 2 } else { 1 };
        for (((purse, watch), &n), &guided) in self.purses.iter_mut().zip(&watches).zip(&applications).zip(&guided) {
            purse.book(&self.network.work, level.t, n, watch, readouts(guided))?;
        }

        let (mut main, log_var) = self.network.outputs(x, &problem.readout(&z)?.detach())?;
        if let Some(guidance) = self.iteration_guidance.filter(|_| guided.contains(&true)) {
            // An image that is not guided stands for its own early iterate: nothing lies between the two.
            let share = z.dim(0)? / guided.len();
            let rows = watches.iter().zip(&guided).enumerate().map(|(i, (watch, &guided))| match &watch.kept {
                Some(kept) if guided => Ok(kept.clone()),
                _ => z.narrow(0, i * share, share),
            });
            let weak = Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
            let (weak, _) = self.network.outputs(x, &problem.readout(&weak)?.detach())?;
            main = (&weak + ((main - &weak)? * guidance.scale)?)?;
        }
        if self.warm_start != WarmStart::Fresh {
            self.memory.keep(level.t, z);
        }
        let (x0, eps) = self.network.parameterization.split(&[level], x, &main)?;
        Ok(Prediction { x0, eps, log_var })
    }
}

impl Account for FixedPointDenoiser<'_> {
    fn costs(&self) -> Vec<Cost> {
        self.purses.iter().map(|purse| purse.cost.clone()).collect()
    }
}
