use super::{Level, NoiseSchedule, Posterior};
use crate::{Error, Result};

/// A variance-preserving schedule of discrete steps, `alpha² + sigma² = 1`.
///
/// `alpha_t² = Π_{s≤t} (1 − β_s)` at the whole times `t = 0 … steps − 1`. Between them the angle of the point
/// `(alpha, sigma)` on the unit circle is interpolated linearly, which keeps the sum of squares and is finite at
/// `alpha = 0`; a network trained on whole times alone has never seen the times between.
///
/// The default is the linear schedule of 1000 steps from 1e-4 to 2e-2.
///
/// # Reference
///
/// Ho, Jain and Abbeel 2020, arXiv 2006.11239, equations 4 to 7; squared cosine: Nichol and Dhariwal 2021,
/// arXiv 2102.09672, equation 17; zero terminal SNR: Lin, Liu, Li and Yang 2023, arXiv 2305.08891, Algorithm 1.
///
/// # Cost
///
/// Six tables of `steps` numbers in f64.
///
/// ```
/// use fpdm_core::{NoiseSchedule, Vp};
///
/// let schedule = Vp::default().zero_terminal_snr()?;
/// let last = schedule.level(999.)?;
/// assert_eq!((last.alpha, last.sigma), (0., 1.));
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Vp {
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
    posteriors: Vec<Posterior>,
}

impl Default for Vp {
    fn default() -> Self {
        Self::tables((0..1000).map(|i| lerp(1e-4, 2e-2, i, 1000)).collect())
    }
}

impl Vp {
    /// The schedule with these `β`, at least two, each in (0, 1); the last may be 1.
    pub fn from_betas(betas: Vec<f64>) -> Result<Self> {
        if betas.len() < 2 {
            return Err(Error::config("betas", format!("{} steps are no schedule; use 2 or more", betas.len())));
        }
        let last = betas.len() - 1;
        match betas.iter().enumerate().find(|&(i, b)| !(*b > 0. && (*b < 1. || (*b == 1. && i == last)))) {
            None => Ok(Self::tables(betas)),
            Some((i, b)) => {
                Err(Error::config(format!("betas[{i}]"), format!("{b} is outside (0, 1); only the last may be 1")))
            }
        }
    }

    /// `β` grows linearly from `first` to `last` over `steps`.
    pub fn linear(first: f64, last: f64, steps: usize) -> Result<Self> {
        Self::from_betas((0..steps).map(|i| lerp(first, last, i, steps)).collect())
    }

    /// `alpha_t²` follows a squared cosine, `β` is capped at 0.999.
    pub fn cosine(steps: usize) -> Result<Self> {
        let signal = |i: usize| ((i as f64 / steps as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        Self::from_betas((0..steps).map(|i| (1. - signal(i + 1) / signal(i)).min(0.999)).collect())
    }

    /// The same schedule with `alpha` shifted and scaled such that the first stays and the last is exactly 0.
    pub fn zero_terminal_snr(&self) -> Result<Self> {
        let alphas: Vec<f64> = self.alphas_cumprod.iter().map(|a| a.sqrt()).collect();
        let (first, last) = (alphas[0], alphas[alphas.len() - 1]);
        let squares: Vec<f64> = alphas.iter().map(|a| ((a - last) * (first / (first - last))).powi(2)).collect();
        let before = std::iter::once(&1.).chain(&squares);
        Self::from_betas(squares.iter().zip(before).map(|(now, before)| 1. - now / before).collect())
    }

    /// `β_t`, by step.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// `alpha_t²`, by step.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// `q(x_{t−1} | x_t, x0)`, by step; step 0 goes to the clean latent.
    pub fn posteriors(&self) -> &[Posterior] {
        &self.posteriors
    }

    fn tables(betas: Vec<f64>) -> Self {
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .scan(1., |product, beta| {
                *product *= 1. - beta;
                Some(*product)
            })
            .collect();
        let before = std::iter::once(&1.).chain(&alphas_cumprod);
        let mut posteriors: Vec<Posterior> = betas
            .iter()
            .zip(alphas_cumprod.iter().zip(before))
            .map(|(beta, (now, before))| Posterior::new(*beta, *now, *before))
            .collect();
        // The first variance is 0 and has no logarithm: by convention it takes the second's.
        if let [first, second, ..] = posteriors.as_mut_slice() {
            first.log_variance = second.log_variance;
        }
        Self { betas, alphas_cumprod, posteriors }
    }
}

impl NoiseSchedule for Vp {
    fn level(&self, t: f64) -> Result<Level> {
        let (_, last) = self.span();
        if !(0. ..=last).contains(&t) {
            return Err(Error::config("t", format!("{t} is outside this schedule's times [0, {last}]")));
        }
        let at = |i: usize| (self.alphas_cumprod[i].sqrt(), (1. - self.alphas_cumprod[i]).sqrt());
        let below = t.floor() as usize;
        let (mut alpha, mut sigma) = at(below);
        if t.fract() != 0. {
            let (a, s) = at(below + 1);
            let (w0, w1) = arc(alpha * a + sigma * s, alpha * s - sigma * a, t.fract());
            (alpha, sigma) = (w0 * alpha + w1 * a, w0 * sigma + w1 * s);
            // Near 1 the sum's rounding would let the noise shrink by a last digit; this grows wherever alpha falls.
            if alpha * alpha <= 0.5 {
                sigma = (1. - alpha * alpha).sqrt();
            }
        }
        Ok(Level { t, alpha, sigma })
    }

    fn span(&self) -> (f64, f64) {
        (0., (self.betas.len() - 1) as f64)
    }
}

/// The `i`-th of `n` numbers from `a` to `b`, both included.
fn lerp(a: f64, b: f64, i: usize, n: usize) -> f64 {
    if i + 1 == n { b } else { a + i as f64 * ((b - a) / (n - 1) as f64) }
}

/// The weights of two points on the unit circle that give the point at `share` of the arc between them.
///
/// Weights and not an angle, because an angle near π/2 forgets how small `alpha` is.
fn arc(cos: f64, sin: f64, share: f64) -> (f64, f64) {
    // On a short arc the chord is as good, and 0/0 is not.
    if sin < 1e-8 {
        return (1. - share, share);
    }
    let angle = sin.atan2(cos);
    (((1. - share) * angle).sin() / sin, (share * angle).sin() / sin)
}
