//! Noise schedules against stored tables and their own laws; parameterisations against each other.

use candle_core::{DType, Device, Tensor, safetensors};
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Flow, Level, NoiseSchedule, Parameterization, Posterior, Result, Vp, diffuse};
use proptest::prelude::*;

const ALL: [Parameterization; 4] =
    [Parameterization::Eps, Parameterization::X0, Parameterization::V, Parameterization::Flow];

fn schedules() -> Result<Vec<(&'static str, Vp)>> {
    Ok(vec![
        ("linear", Vp::default()),
        ("cosine", Vp::cosine(1000)?),
        ("linear_zero_snr", Vp::default().zero_terminal_snr()?),
    ])
}

/// The published trainer's tables in f64.
#[test]
fn tables_are_the_published_ones() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/schedules.safetensors");
    let stored = safetensors::load(path, &Device::Cpu)?;
    for (name, vp) in schedules()? {
        let column = |of: fn(&Posterior) -> f64| vp.posteriors().iter().map(of).collect();
        let tables: [(&str, Vec<f64>); 6] = [
            ("betas", vp.betas().to_vec()),
            ("alphas_cumprod", vp.alphas_cumprod().to_vec()),
            ("posterior_variance", column(|p| p.variance)),
            ("posterior_log_variance_clipped", column(|p| p.log_variance)),
            ("posterior_mean_coef1", column(|p| p.mean_x0)),
            ("posterior_mean_coef2", column(|p| p.mean_xt)),
        ];
        for (table, got) in tables {
            let want = stored[&format!("{name}.{table}")].to_vec1::<f64>()?;
            assert_eq!(got.len(), want.len());
            for (t, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!((got - want).abs() <= 1e-12, "{name}.{table}[{t}]: {got}, not {want}");
            }
        }
    }
    Ok(())
}

#[test]
fn zero_terminal_snr_is_exactly_zero_and_keeps_the_start() -> Result<()> {
    for vp in [Vp::default(), Vp::cosine(250)?, Vp::linear(1e-3, 0.1, 50)?] {
        let rescaled = vp.zero_terminal_snr()?;
        let (first, last) = rescaled.span();
        let end = rescaled.level(last)?;
        assert_eq!((end.alpha, end.sigma, end.snr()), (0., 1., 0.));
        assert!((rescaled.level(first)?.alpha - vp.level(first)?.alpha).abs() < 1e-12);
    }
    Ok(())
}

#[test]
fn jumps_are_neighbours_where_they_are_neighbours() -> Result<()> {
    for (name, vp) in schedules()? {
        for t in 1..1000usize {
            let jump = Posterior::between(vp.level(t as f64)?, vp.level(t as f64 - 1.)?)?;
            let table = vp.posteriors()[t];
            for (a, b) in
                [(jump.variance, table.variance), (jump.mean_x0, table.mean_x0), (jump.mean_xt, table.mean_xt)]
            {
                assert!((a - b).abs() < 1e-11, "{name} at {t}: {jump:?}, not {table:?}");
            }
        }
    }
    let flow = Flow::default();
    assert!(Posterior::between(flow.level(500.)?, flow.level(400.)?).is_err());
    let vp = Vp::default();
    assert!(Posterior::between(vp.level(3.)?, vp.level(4.)?).is_err());
    Ok(())
}

#[test]
fn bad_input_is_an_error_that_names_it() {
    let message = |r: Result<Vp>| r.expect_err("must be refused").to_string();
    assert!(message(Vp::from_betas(vec![0.1])).contains("betas"));
    assert!(message(Vp::from_betas(vec![0.1, 0., 0.2])).contains("betas[1]"));
    assert!(message(Vp::from_betas(vec![0.1, 1., 0.2])).contains("betas[1]"));
    assert!(message(Vp::from_betas(vec![0.1, f64::NAN])).contains("betas[1]"));
    assert!(message(Vp::linear(1e-4, 2e-2, 0)).contains("steps"));
    assert!(message(Vp::cosine(1)).contains("steps"));
    for t in [-0.5, 1000.5, f64::NAN, f64::INFINITY] {
        assert!(Vp::default().level(t).is_err());
        assert!(Flow::default().level(t).is_err());
    }
    assert!(Flow { steps: 0. }.level(0.).is_err());
    assert!("velocity".parse::<Parameterization>().is_err());
}

#[test]
fn parameterisations_go_there_and_back() -> Result<()> {
    let mut rng = rng::stream(1, Stream::Noise, 0);
    let mut draw = || rng::normal((3, 2, 4, 4), &mut rng, DType::F64, &Device::Cpu);
    let (x0, eps) = (draw()?, draw()?);
    let flow = Flow::default();
    let vp = Vp::default().zero_terminal_snr()?;
    let levels = [vp.level(10.)?, vp.level(500.)?, vp.level(900.)?];
    let straight = [flow.level(10.)?, flow.level(500.)?, flow.level(1000.)?];
    for p in ALL {
        // One level a sample, one for all.
        check(p, &levels, &x0, &eps)?;
        check(p, &levels[1..2], &x0, &eps)?;
        check(p, &straight[1..2], &x0, &eps)?;
    }
    check(Parameterization::Flow, &straight, &x0, &eps)?;
    Ok(())
}

fn check(p: Parameterization, levels: &[Level], x0: &Tensor, eps: &Tensor) -> Result<()> {
    let x = diffuse(levels, x0, eps)?;
    let (got_x0, got_eps) = p.split(levels, &x, &p.target(levels, x0, eps)?)?;
    for (got, want) in [(got_x0, x0), (got_eps, eps)] {
        let gap = (got - want)?.abs()?.max_all()?.to_scalar::<f64>()?;
        assert!(gap < 1e-10, "{p} at {levels:?}: {gap}");
    }
    Ok(())
}

#[test]
fn pure_noise_and_pure_signal() -> Result<()> {
    let of = |v: f64| Tensor::new(&[v], &Device::Cpu);
    let (x0, eps) = (of(0.1)?, of(-0.7)?);
    let noise = [Vp::default().zero_terminal_snr()?.level(999.)?];
    for p in [Parameterization::V, Parameterization::X0, Parameterization::Flow] {
        let (got_x0, got_eps) = p.split(&noise, &eps, &p.target(&noise, &x0, &eps)?)?;
        let exact = if p == Parameterization::Flow { 1e-16 } else { 0. };
        assert!((got_x0.to_vec1::<f64>()?[0] - 0.1).abs() <= exact, "{p}");
        assert_eq!(got_eps.to_vec1::<f64>()?, [-0.7], "{p}");
    }
    assert!(Parameterization::Eps.split(&noise, &eps, &eps).is_err());
    assert!(Parameterization::X0.split(&[Level::CLEAN], &x0, &x0).is_err());
    // One sample at fault is an error for the batch: a silent infinity would spread.
    let levels = [Level { t: 1., alpha: 0.8, sigma: 0.6 }, noise[0]];
    let two = Tensor::new(&[[1f64], [2.]], &Device::Cpu)?;
    assert!(Parameterization::Eps.split(&levels, &two, &two).is_err());
    assert!(diffuse(&levels, &x0, &eps).is_err(), "two levels, one sample");
    Ok(())
}

#[test]
fn names_are_what_files_say() {
    for (p, name) in ALL.into_iter().zip(["eps", "x0", "v", "flow"]) {
        assert_eq!(serde_json::to_string(&p).unwrap(), format!("\"{name}\""));
        assert_eq!(serde_json::from_str::<Parameterization>(&format!("\"{name}\"")).unwrap(), p);
        assert_eq!((p.to_string().as_str(), name.parse::<Parameterization>().unwrap()), (name, p));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn noise_grows_and_energy_stays(
        first in 1e-5f64..1e-2,
        last in 1e-2f64..0.5,
        steps in 2usize..400,
        zero in any::<bool>(),
        (u, v) in (0f64..1., 0f64..1.),
    ) {
        // Closer than this, rounding decides which of two neighbours is the smaller.
        prop_assume!((u - v).abs() > 1e-4);
        let mut vp = Vp::linear(first, last, steps).unwrap();
        if zero {
            vp = vp.zero_terminal_snr().unwrap();
        }
        let end = vp.span().1;
        let (a, b) = (vp.level(u.min(v) * end).unwrap(), vp.level(u.max(v) * end).unwrap());
        prop_assert!(a.alpha > b.alpha && a.sigma <= b.sigma && a.snr() > b.snr(), "{:?} {:?}", a, b);
        prop_assert!((a.alpha.powi(2) + a.sigma.powi(2) - 1.).abs() < 1e-14);
        let flow = Flow { steps: end };
        let (a, b) = (flow.level(u.min(v) * end).unwrap(), flow.level(u.max(v) * end).unwrap());
        prop_assert!(a.snr() > b.snr());
        prop_assert!((a.alpha + a.sigma - 1.).abs() < 1e-15);
    }
}
