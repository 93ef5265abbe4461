//! A solver from outside: the vector Aitken method, against Picard and Anderson on a map with a known fixed point.
//!
//! ```text
//! cargo run --example new_solver -- --dim 64 --rate 0.99
//! ```

use candle_core::{DType, Device, Tensor};
use clap::Parser;
use fpdm_core::rng::{self, Stream};
use fpdm_core::{
    Anderson, Broyden, Budget, FixedPointMap, Iterates, Picard, Result, Solver, Tolerance, iterates, solve,
};

/// Aitken's method for vectors: `z' = z + w·r` with `r = f(z) − z` and `w ← −w·⟨r₋, r − r₋⟩ / ‖r − r₋‖²`.
///
/// One remembered residual a sample; `w` is the secant slope along the last step.
///
/// Irons and Tuck 1969, "A version of the Aitken accelerator for computer iteration".
struct Aitken;

impl Solver for Aitken {
    fn iterate<'a>(&'a self, f: &'a dyn FixedPointMap, z0: Tensor) -> Iterates<'a> {
        let mut last: Option<(Tensor, Tensor)> = None;
        iterates(f, z0, move |z, fz| {
            let r = (fz - z)?; // (B, D)
            let dot = |a: &Tensor, b: &Tensor| -> Result<Tensor> { Ok((a * b)?.sum_keepdim(1)?) };
            let w = match &last {
                None => Tensor::ones((z.dims()[0], 1), z.dtype(), z.device())?, // a Picard step
                Some((r0, w0)) => {
                    let dr = (&r - r0)?;
                    // The tiny constant keeps a sample that has arrived from dividing 0 by 0.
                    (w0.neg()? * dot(r0, &dr)?.div(&(dot(&dr, &dr)? + 1e-300)?)?)?
                }
            };
            let next = (z + r.broadcast_mul(&w)?)?;
            last = Some((r, w));
            Ok(next)
        })
    }
}

#[derive(Parser)]
#[command(about = "Applications that solvers need on a contraction whose fixed point is known")]
struct Args {
    /// Dimensions of the state.
    #[arg(long, default_value_t = 64)]
    dim: usize,
    /// The slowest rate of the map, in (0, 1): the others are spread below it.
    #[arg(long, default_value_t = 0.99)]
    rate: f64,
    /// The relative residual to reach.
    #[arg(long, default_value_t = 1e-8)]
    tolerance: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.dim > 0, "--dim 0: there is nothing to solve; use 1 or more");
    anyhow::ensure!(args.rate > 0. && args.rate < 1., "--rate {}: must lie between 0 and 1", args.rate);
    let rates: Vec<f64> = (1..=args.dim).map(|i| args.rate * i as f64 / args.dim as f64).collect();
    let rates = Tensor::new(rates, &Device::Cpu)?;
    let answer = rng::normal((1, args.dim), &mut rng::stream(0, Stream::Init, 0), DType::F64, &Device::Cpu)?;
    // f(z) = z* + rates·(z − z*), a little bent so that it is not linear.
    let f = |z: &Tensor| -> Result<Tensor> {
        Ok((z.broadcast_sub(&answer)?.sin()?.broadcast_mul(&rates)?).broadcast_add(&answer)?)
    };
    let solvers: [(&str, &dyn Solver); 4] = [
        ("Picard", &Picard::default()),
        ("Aitken (this file)", &Aitken),
        ("Anderson", &Anderson::default()),
        ("Broyden", &Broyden::default()),
    ];
    println!("{:20} {:>12} {:>12} {:>10}", "solver", "applications", "error", "ended");
    for (name, solver) in solvers {
        let mut stop = (Budget(100_000), Tolerance { abs: 0., rel: args.tolerance, every: 1 });
        let found = solve(solver, &f, answer.zeros_like()?, &mut stop)?;
        let error = (&found.z - &answer)?.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>()?;
        println!("{name:20} {:12} {error:12.2e} {:>10}", found.applications, format!("{:?}", found.reason));
    }
    Ok(())
}
