//! What steps say about themselves, and when it is read.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use fpdm_core::{Error, Residual, Result};
use serde::{Deserialize, Serialize};

use crate::{Estimate, peak_bytes};

/// What one step did, or several since the last report; as JSON, one line of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The number of the last step, from 1.
    pub step: u64,
    /// Steps since the last report. The parts of the loss, the norm and the time are means over them.
    #[serde(default = "one")]
    pub steps: u64,
    /// The sum of all parts.
    pub loss: f64,
    /// The weighted error of the prediction.
    pub error: f64,
    /// The variational bound, 0 without learned variance.
    pub bound: f64,
    /// The penalty on the Jacobian, 0 without one.
    pub jacobian: f64,
    /// The penalty on what changes with time, 0 without one.
    pub consistency: f64,
    /// The norm of the gradient before it is clipped.
    pub grad_norm: f64,
    /// The learning rate of the last step.
    pub lr: f64,
    /// Iterations without gradient of the last step.
    pub n: usize,
    /// Iterations with gradient of the last step.
    pub m: usize,
    /// `‖f(z) − z‖ / ‖f(z)‖` of the worst sample at the last application of the last step.
    pub residual: f64,
    /// Wall-clock time of a step.
    pub seconds: f64,
    /// Samples over wall-clock time.
    pub images_per_s: f64,
    /// The most memory that the run has taken so far, where it is known: see [`peak_bytes`].
    pub peak_bytes: Option<u64>,
}

fn one() -> u64 {
    1
}

/// Numbers of steps that are still on the device.
pub(crate) struct Unread {
    /// The parts of the loss and the norm of the gradient, `(5)`, summed over the steps.
    sums: Tensor,
    steps: u64,
    n: usize,
    m: usize,
    /// Of the last application of the last step, [`Iterate::squares`](fpdm_core::Iterate::squares): the points
    /// themselves would take their memory from the next step.
    squares: Tensor,
}

impl Unread {
    /// `before` and one step more.
    pub(crate) fn add(before: Option<Self>, numbers: Tensor, estimate: &Estimate) -> Result<Self> {
        let (sums, steps) = match before {
            Some(before) => ((before.sums + numbers)?, before.steps + 1),
            None => (numbers, 1),
        };
        let squares = estimate.last.squares()?.to_dtype(DType::F32)?;
        Ok(Self { sums, steps, n: estimate.n, m: estimate.m, squares })
    }

    /// Waits for the device and looks; `step` is the last one's number.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for a number that is none.
    pub(crate) fn look(self, step: u64) -> Result<Seen> {
        let Self { sums, steps, n, m, squares } = self;
        let numbers = Tensor::cat(&[sums, squares], 0)?.to_vec1::<f32>()?; // one synchronisation for all
        let (sums, squares) = numbers.split_at(5);
        let means = [0, 1, 2, 3, 4].map(|i| f64::from(sums[i]) / steps as f64);
        let [error, bound, jacobian, consistency, grad_norm] = means;
        let (loss, iter) = (error + bound + jacobian + consistency, n + m);
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let which =
                if steps == 1 { format!("step {step}") } else { format!("steps {} to {step}", step + 1 - steps) };
            let at = format!("{which}: the loss {loss} or the gradient's norm {grad_norm}");
            return Err(Error::NonFinite { at, iter });
        }
        let squares: Vec<f64> = squares.iter().copied().map(f64::from).collect();
        let residual = Residual::worst(&Residual::of_squares(&squares))
            .ok_or_else(|| Error::NonFinite { at: format!("step {step}: the residual f(z) − z"), iter })?;
        Ok(Seen { step, steps, loss, means, n, m, residual: residual.rel })
    }
}

/// Numbers that have been looked at.
pub(crate) struct Seen {
    step: u64,
    steps: u64,
    loss: f64,
    means: [f64; 5],
    n: usize,
    m: usize,
    residual: f64,
}

impl Seen {
    /// The report of steps of `images` samples that took `seconds` together.
    pub(crate) fn report(self, lr: f64, images: usize, seconds: f64, device: &Device) -> StepReport {
        let Self { step, steps, loss, means: [error, bound, jacobian, consistency, grad_norm], n, m, residual } = self;
        let seconds = seconds / steps as f64;
        StepReport {
            step,
            steps,
            loss,
            error,
            bound,
            jacobian,
            consistency,
            grad_norm,
            lr,
            n,
            m,
            residual,
            seconds,
            images_per_s: images as f64 / seconds,
            peak_bytes: peak_bytes(device),
        }
    }
}

/// The time of steps, without what is between a report and the next step.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    before: f64,
    since: Option<Instant>,
}

impl Clock {
    /// Goes on after so many seconds.
    pub(crate) fn after(seconds: f64) -> Self {
        Self { before: seconds, since: None }
    }

    /// Runs, if it does not already.
    pub(crate) fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// The seconds since it was started.
    pub(crate) fn stop(&mut self) -> f64 {
        let seconds = self.since.take().map_or(0., |since| since.elapsed().as_secs_f64());
        self.before += seconds;
        seconds
    }

    /// All seconds so far.
    pub(crate) fn seconds(&self) -> f64 {
        self.before + self.since.map_or(0., |since| since.elapsed().as_secs_f64())
    }
}
