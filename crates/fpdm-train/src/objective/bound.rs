//! The variational bound, from which the variance is learned.

use candle_core::{DType, Tensor};
use fpdm_core::{Error, Level, Parameterization, Posterior, Result, Vp};

/// A term of the variational bound for every sample, in bits a dimension, `(B)` in f32.
///
/// `prediction` `(B, C, H, W)` is what the network says about the mean; no gradient goes there. `variance`, like it,
/// is in [-1, 1] between the posterior's variance and `β`, in logarithms. At `t = 0` it is the negative log-likelihood of
/// `x0` in 256 bins of [-1, 1]; latents are no pixels, but that is how the published networks were trained.
///
/// # Reference
/// Nichol and Dhariwal 2021, arXiv 2102.09672, equations 4 to 7 and 15.
///
/// # Errors
/// [`Error::Config`] for times that are no whole steps of `schedule`; [`Parameterization::split`]'s.
pub fn variational_bound(
    schedule: &Vp,
    parameterization: Parameterization,
    levels: &[Level],
    (x0, xt): (&Tensor, &Tensor),
    (prediction, variance): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let posteriors = levels.iter().map(|level| posterior(schedule, *level)).collect::<Result<Vec<_>>>()?;
    let dtype = match x0.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let cast = |t: &Tensor| t.to_dtype(dtype);
    let (x0, xt, prediction, variance) = (cast(x0)?, cast(xt)?, cast(&prediction.detach())?, cast(variance)?);
    let column = |of: &dyn Fn(&Posterior) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = posteriors.iter().map(of).collect();
        let mut dims = vec![1; x0.rank()];
        dims[0] = values.len();
        Ok(Tensor::from_vec(values, dims, &candle_core::Device::Cpu)?.to_dtype(dtype)?.to_device(x0.device())?)
    };
    // How much wider than the posterior, in logarithms: not as the difference of two logarithms of about -10, in which
    // f32 would lose five digits.
    let gap = variance.affine(0.5, 0.5)?.broadcast_mul(&column(&|p| p.beta.ln() - p.log_variance)?)?;
    let low = column(&|p| p.log_variance)?;
    let log_variance = gap.broadcast_add(&low)?;

    let (said_x0, _) = parameterization.split(levels, &xt, &prediction)?;
    let of_x0 = column(&|p| p.mean_x0)?;

    // KL(N(μ, e^l) ‖ N(μ', e^l')) = ½(l' − l − 1 + e^(l − l') + (μ − μ')² e^(−l')).
    // The gap's part is small, and 1 - e^(-gap) = 2u/(1 + u) with u = tanh(gap/2) does not cancel where it is.
    let u = (&gap * 0.5)?.tanh()?;
    let of_gap = (&gap - ((&u * 2.)? / (u + 1.)?)?)?;
    // The distance of means is that of x0, weighted: the rest of them is the same.
    let apart = (&x0 - &said_x0)?.broadcast_mul(&of_x0)?.detach();
    let square = (apart.sqr()? * log_variance.neg()?.exp()?)?;
    let kl = (of_gap + square)?.affine(0.5, 0.)?;
    let bits = |t: Tensor| -> Result<Tensor> { Ok((t.flatten_from(1)?.mean(1)? / std::f64::consts::LN_2)?) };
    // Few batches have a first time, and the likelihood of the bins takes as long as all the rest.
    let first: Vec<u8> = levels.iter().map(|level| u8::from(level.t == 0.)).collect();
    if !first.contains(&1) {
        return bits(kl);
    }
    let said_mean = (said_x0.broadcast_mul(&of_x0)? + xt.broadcast_mul(&column(&|p| p.mean_xt)?)?)?.detach();
    let nll = binned_nll(&x0, &said_mean, &(log_variance * 0.5)?)?;
    Ok(Tensor::new(first, x0.device())?.where_cond(&bits(nll)?, &bits(kl)?)?)
}

fn posterior(schedule: &Vp, level: Level) -> Result<Posterior> {
    let whole = level.t.fract() == 0. && level.t >= 0.;
    schedule.posteriors().get(level.t as usize).filter(|_| whole).copied().ok_or_else(|| {
        let steps = schedule.posteriors().len();
        let why = format!("{} is no whole step of 0 to {}; the bound has none between", level.t, steps - 1);
        Error::config("t", why)
    })
}

/// `−ln P(x)` for a normal of log-deviation `log_std`, integrated over the bin of `x` among 256 in [-1, 1]; the outer
/// bins reach to infinity.
fn binned_nll(x: &Tensor, mean: &Tensor, log_std: &Tensor) -> Result<Tensor> {
    let centered = (x - mean)?;
    let inverse = log_std.neg()?.exp()?;
    let cdf = |shift: f64| -> Result<Tensor> { approximate_cdf(&((&centered + shift)? * &inverse)?) };
    let (above, below) = (cdf(1. / 255.)?, cdf(-1. / 255.)?);
    let log = |t: Tensor| -> Result<Tensor> { Ok(t.clamp(1e-12, 1.)?.log()?) };
    let lowest = log(above.clone())?;
    let highest = log((1. - &below)?)?;
    let inside = log((above - below)?)?;
    let nll = x.lt(-0.999)?.where_cond(&lowest, &x.gt(0.999)?.where_cond(&highest, &inside)?)?;
    Ok(nll.neg()?)
}

/// The normal distribution function as `½(1 + tanh(√(2/π)(x + 0.044715x³)))`, Page 1977, as in the published training.
fn approximate_cdf(x: &Tensor) -> Result<Tensor> {
    let inner = (x + (x.sqr()? * x)?.affine(0.044715, 0.)?)?;
    Ok(inner.affine((2. / std::f64::consts::PI).sqrt(), 0.)?.tanh()?.affine(0.5, 0.5)?)
}
