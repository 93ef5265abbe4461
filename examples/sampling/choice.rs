//! From the words of a command line to solvers, policies, rules and schedules, and nothing else.

use anyhow::{Result, bail};
use candle_core::DType;
use fpdm_core::{Anderson, Broyden, Picard, Schedule, Solver};
use fpdm_sample::{
    Adaptive, AllocationPolicy, Counts, Ddim, Ddpm, DpmSolver, Euler, FlowHeun, Heun, Ledger, Plan, Ramp, Slope, Spend,
    StepRule, Table, UniPc, Uniform, Variance,
};

fn number<T: std::str::FromStr>(flag: &str, text: &str) -> Result<T> {
    match text.parse() {
        Ok(value) => Ok(value),
        Err(_) => bail!("{flag}: `{text}` is no number"),
    }
}

/// `picard`, `picard:DAMP`, `anderson`, `anderson:MEMORY`, `broyden`, `broyden:MEMORY`.
pub(crate) fn solver(text: &str) -> Result<Box<dyn Solver>> {
    let flag = "--solver";
    Ok(match text.split_once(':').unwrap_or((text, "")) {
        ("picard", "") => Box::new(Picard::default()),
        ("picard", damp) => {
            let damp: f64 = number(flag, damp)?;
            anyhow::ensure!((0. ..1.).contains(&damp), "{flag}: a damping of {damp} is outside [0, 1); 0 is none");
            Box::new(Picard { damp })
        }
        ("anderson", "") => Box::new(Anderson::default()),
        ("anderson", memory) => Box::new(Anderson { memory: number(flag, memory)?, ..Anderson::default() }),
        ("broyden", "") => Box::new(Broyden::default()),
        ("broyden", memory) => Box::new(Broyden { memory: number(flag, memory)? }),
        _ => bail!("{flag}: `{text}` is none of picard[:damp], anderson[:memory], broyden[:memory]"),
    })
}

/// A fresh rule for one trajectory: the names are in the message at the end.
pub(crate) fn rule(text: &str) -> Result<Box<dyn StepRule>> {
    let flag = "--sampler";
    Ok(match text.split_once(':').unwrap_or((text, "")) {
        ("ddpm", "" | "learned") => Box::new(Ddpm { variance: Variance::Learned }),
        ("ddpm", "small") => Box::new(Ddpm { variance: Variance::Small }),
        ("ddpm", "large") => Box::new(Ddpm { variance: Variance::Large }),
        ("ddim", "") => Box::new(Ddim::default()),
        ("ddim", eta) => Box::new(Ddim { eta: number(flag, eta)? }),
        ("dpmpp2m", "") => Box::new(DpmSolver::default()),
        ("unipc2", "") => Box::new(UniPc::default()),
        ("euler" | "flow-euler", "") => Box::new(Euler),
        ("heun", "") => Box::new(Heun),
        ("flow-heun", "") => Box::new(FlowHeun),
        _ => bail!(
            "{flag}: `{text}` is none of ddpm[:learned|small|large], ddim[:eta], dpmpp2m, unipc2, euler, heun, \
             flow-euler, flow-heun"
        ),
    })
}

/// Whether a rule reads the variance that a network has learned.
pub(crate) fn reads_variance(text: &str) -> bool {
    matches!(text, "ddpm" | "ddpm:learned")
}

/// The steps over a schedule.
pub(crate) fn plan(schedule: &Schedule, spacing: &str, steps: usize, rule: &str) -> Result<Plan> {
    if !matches!(schedule, Schedule::Flow { .. }) && rule.starts_with("flow-") {
        bail!("--sampler: `{rule}` is for weights trained on flow matching; use {}", &rule[5..]);
    }
    Ok(Plan::of(schedule, spacing.parse()?, steps)?)
}

/// `N` or `Nblocks` block passes, `Napplications` applications, `Neach` applications a solve.
pub(crate) fn spend(text: &str, solves: usize) -> Result<Spend> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let Ok(n) = digits.parse::<usize>() else {
        bail!("--budget: `{text}` is no number; use 280 block passes, 160applications or 4each, say");
    };
    match &text[digits.len()..] {
        "" | "blocks" => Ok(Spend::BlockPasses(n)),
        "applications" => Ok(Spend::Applications(n)),
        "each" => Ok(Spend::Applications(n.saturating_mul(solves))),
        unit => bail!("--budget: unit `{unit}` is none of blocks, applications, each"),
    }
}

/// A fresh policy for one trajectory: the names are in the message at the end. Early is noisy.
pub(crate) fn policy(text: &str, ledger: &Ledger) -> Result<Box<dyn AllocationPolicy>> {
    let flag = "--allocation";
    let counts = |counts: Counts| -> Result<Box<dyn AllocationPolicy>> {
        counts.check(ledger.solves())?;
        let (want, have) = (counts.total(), ledger.total());
        anyhow::ensure!(want <= have, "{flag}: `{text}` wants {want} applications of a budget of {have}");
        Ok(Box::new(counts))
    };
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    let ramp = |slope| -> Result<Box<dyn AllocationPolicy>> {
        let Some((early, late)) = rest.split_once(':') else {
            bail!("{flag}: `{text}` lacks its two ends; use {name}:EARLY:LATE, {name}:1.5:0.5 say");
        };
        let (early, late): (f64, f64) = (number(flag, early)?, number(flag, late)?);
        let fits = |w: f64| w > 0. && w.is_finite();
        anyhow::ensure!(fits(early) && fits(late), "{flag}: `{text}` has an end that is not positive");
        Ok(Box::new(Ramp { early, late, slope }))
    };
    match (name, rest) {
        ("uniform", "") => Ok(Box::new(Uniform)),
        ("early", "") => Ok(Box::new(Ramp::EARLY)),
        ("late", "") => Ok(Box::new(Ramp::LATE)),
        ("linear", _) => ramp(Slope::Linear),
        ("geometric", _) => ramp(Slope::Geometric),
        ("published-early", "") => counts(Counts::published_ramp(1.5, 0.5, ledger.total(), ledger.solves())?),
        ("published-late", "") => counts(Counts::published_ramp(0.5, 1.5, ledger.total(), ledger.solves())?),
        ("adaptive", "") => Ok(Box::new(Adaptive::default())),
        ("adaptive", threshold) => {
            let threshold: f64 = number(flag, threshold)?;
            anyhow::ensure!(threshold > 0., "{flag}: a threshold of {threshold}; use 0.01 say");
            Ok(Box::new(Adaptive::from_threshold(threshold)))
        }
        ("table", path) if !path.is_empty() => match Table::read(path)? {
            Table::Counts(table) => counts(table),
            Table::Curve(curve) => Ok(Box::new(curve)),
        },
        _ => bail!(
            "{flag}: `{text}` is none of uniform, early, late, linear:EARLY:LATE, geometric:EARLY:LATE, \
             published-early, published-late, table:FILE, adaptive[:threshold]"
        ),
    }
}

/// `f32`, `f16`, `bf16`.
pub(crate) fn dtype(text: &str) -> Result<DType> {
    match text {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => bail!("--dtype: `{text}` is none of f32, f16, bf16"),
    }
}
