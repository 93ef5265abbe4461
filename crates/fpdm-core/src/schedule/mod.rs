//! How much signal and how much noise there is at a time.

mod flow;
mod posterior;
mod vp;

use candle_core::Tensor;

pub use self::flow::Flow;
pub use self::posterior::Posterior;
pub use self::vp::Vp;
use crate::{Error, Result};

/// A noise level: `x_t = alpha·x0 + sigma·eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The time that the network is told.
    pub t: f64,
    /// The factor of the clean latent.
    pub alpha: f64,
    /// The factor of the noise.
    pub sigma: f64,
}

impl Level {
    /// No noise at all: where sampling ends. No network is asked here, so its time is only nominal.
    pub const CLEAN: Self = Self { t: 0., alpha: 1., sigma: 0. };

    /// The signal-to-noise ratio `alpha² / sigma²`; infinite without noise.
    ///
    /// ```
    /// use fpdm_core::Level;
    ///
    /// assert_eq!(Level { t: 1., alpha: 0.8, sigma: 0.4 }.snr(), 4.);
    /// assert_eq!(Level::CLEAN.snr(), f64::INFINITY);
    /// ```
    pub fn snr(&self) -> f64 {
        (self.alpha / self.sigma).powi(2)
    }
}

/// From a time to a noise level. Time is what the network is told, in every schedule: `level(t).t == t`.
///
/// Noise grows with time. The signal-to-noise ratio strictly falls.
///
/// ```
/// use fpdm_core::{NoiseSchedule, Vp};
///
/// let schedule = Vp::default();
/// assert_eq!(schedule.span(), (0., 999.));
/// assert!(schedule.level(0.)?.snr() > schedule.level(999.)?.snr());
/// assert!(schedule.level(1000.).is_err());
/// # fpdm_core::Result::<()>::Ok(())
/// ```
pub trait NoiseSchedule {
    /// The level at `t`, or [`Error::Config`] outside [`span`](NoiseSchedule::span).
    fn level(&self, t: f64) -> Result<Level>;

    /// The times of least and of most noise, both included.
    fn span(&self) -> (f64, f64);
}

/// Noisy latents `x_t = alpha·x0 + sigma·eps`.
///
/// # Shapes
///
/// `x0` and `eps` `(B, ...)`; one level for all samples or one for each.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_core::{Level, diffuse};
///
/// let x0 = Tensor::new(&[[2f64], [2.]], &Device::Cpu)?;
/// let eps = Tensor::new(&[[1f64], [1.]], &Device::Cpu)?;
/// let half = Level { t: 500., alpha: 0.5, sigma: 0.5 };
/// assert_eq!(diffuse(&[half, Level::CLEAN], &x0, &eps)?.to_vec2::<f64>()?, [[1.5], [2.]]);
/// # fpdm_core::Result::<()>::Ok(())
/// ```
pub fn diffuse(levels: &[Level], x0: &Tensor, eps: &Tensor) -> Result<Tensor> {
    combine(levels.iter().map(|l| (l.alpha, l.sigma)), x0, eps)
}

/// `p·x + q·y` with one pair `(p, q)` for all samples or one for each. A factor of 0 hides whatever it multiplies.
pub(crate) fn combine(pairs: impl Iterator<Item = (f64, f64)>, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (p, q): (Vec<f64>, Vec<f64>) = pairs.unzip();
    if x.shape() != y.shape() {
        return Err(Error::shape("the two parts of a noisy latent", x.shape(), y.shape()));
    }
    match (scaled(&p, x)?, scaled(&q, y)?) {
        (Some(x), Some(y)) => Ok((x + y)?),
        (Some(x), None) => Ok(x),
        (None, Some(y)) => Ok(y),
        (None, None) => Ok(x.zeros_like()?),
    }
}

fn scaled(factors: &[f64], x: &Tensor) -> Result<Option<Tensor>> {
    match *factors {
        [0.] => Ok(None),
        [1.] => Ok(Some(x.clone())),
        [factor] => Ok(Some((x * factor)?)),
        _ if x.rank() > 0 && factors.len() == x.dims()[0] => {
            let mut dims = vec![1; x.rank()];
            dims[0] = factors.len();
            let on_host = Tensor::new(factors, &candle_core::Device::Cpu)?.to_dtype(x.dtype())?;
            Ok(Some(x.broadcast_mul(&on_host.to_device(x.device())?.reshape(dims)?)?))
        }
        _ => {
            let want = format!("1 level, or one for each sample of {:?}", x.dims());
            Err(Error::Shape { what: "levels".into(), expected: want, got: factors.len().to_string() })
        }
    }
}
