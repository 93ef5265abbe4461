//! Policies × solvers × starts × budgets: what a budget buys, as CSV and as a plot.
//!
//! ```sh
//! cargo run --release --example sweep -- --weights path/to/model.safetensors --budgets 80,140,280
//! ```
//!
//! Quality is the distance of the latents from those of the same noise with every solve converged: the root of the mean
//! square over all elements. It says how well solves were solved, not how beautiful the pictures are.

mod device;
mod sampling;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use clap::Parser;
use fpdm_core::dit::Labels;
use fpdm_sample::Cost;
use indicatif::{ProgressBar, ProgressStyle};
use sampling::flags::Flags;
use sampling::network::{Label, Opened};
use sampling::ready::Ready;
use sampling::settings::Settings;
use sampling::{files, stop};

/// Compares what budgets buy under several policies, solvers and warm starts.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    flags: Flags,
    /// Budgets, as --budget says them.
    #[arg(long, value_delimiter = ',', default_value = "80,120,160,280")]
    budgets: Vec<String>,
    /// Policies, as --allocation says them.
    #[arg(long, value_delimiter = ',', default_value = "uniform,early,late")]
    allocations: Vec<String>,
    /// Solvers, as --solver says them.
    #[arg(long, value_delimiter = ',', default_value = "picard,anderson")]
    solvers: Vec<String>,
    /// Warm starts, as --reuse says them.
    #[arg(long, value_delimiter = ',', default_value = "fresh,reuse")]
    reuses: Vec<String>,
    /// Applications a solve that count as converged.
    #[arg(long, default_value_t = 64)]
    converged: usize,
    /// Pictures, one batch.
    #[arg(long, default_value_t = 4)]
    num: u64,
    /// Class of all pictures, for weights with classes.
    #[arg(long, default_value_t = 0)]
    label: u32,
    /// What the plot shows against block passes: distance or residual.
    #[arg(long, default_value = "distance")]
    plot: String,
    /// auto, cpu, cuda or metal.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Record the network's work on a GPU and replay it: auto, where it pays; on, or off. Pictures do not depend on it.
    #[arg(long, default_value = "auto")]
    graphs: String,
    /// Where sweep.csv and sweep.svg go.
    #[arg(long, default_value = "sweep")]
    out: PathBuf,
}

struct Row {
    series: String,
    budget: String,
    cost: Cost,
    distance: f64,
}

fn main() -> Result<()> {
    let command = Command::parse();
    ensure!(command.num > 0, "--num 0: no picture to make; use 1 or more");
    ensure!(command.converged > 0, "--converged 0: use 64 say");
    ensure!(
        ["distance", "residual"].contains(&&*command.plot),
        "--plot: `{}` is none of distance, residual",
        command.plot
    );
    let Flags { budget, allocation, solver, reuse, .. } = &command.flags;
    for (flag, given) in [("budget", budget), ("allocation", allocation), ("solver", solver), ("reuse", reuse)] {
        ensure!(given.is_none(), "--{flag}: a sweep takes several; use --{flag}s");
    }
    files::prepare(&command.out)?;
    let device = device::open(&command.device)?;
    let opened = Opened::open(&command.flags.place, &command.flags.dtype, device, &command.graphs)?;
    let common = command.flags.settle(&opened)?;
    let images: Vec<u64> = (0..command.num).collect();
    let class = matches!(opened.config.labels, Labels::Classes(_)).then_some(Label::Class(command.label));
    let labels = vec![class; images.len()];
    // Refuses a number that is no class.
    opened.labels(&labels)?;

    let mut settings = Vec::new();
    for allocation in &command.allocations {
        for solver in &command.solvers {
            for reuse in &command.reuses {
                for budget in &command.budgets {
                    let (allocation, solver, reuse) = (allocation.clone(), solver.clone(), reuse.clone());
                    settings.push(Settings { allocation, solver, reuse, budget: budget.clone(), ..common.clone() });
                }
            }
        }
    }
    // All are checked before the first is run.
    let ready = settings.iter().map(|s| Ready::new(&opened, s)).collect::<Result<Vec<_>>>()?;
    let mut reference = common;
    (reference.allocation, reference.reuse) = ("uniform".into(), "fresh".into());
    reference.budget = format!("{}each", command.converged);
    stop::listen()?;

    let bar = ProgressBar::new(1 + settings.len() as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} runs, {eta} left {msg}")?);
    let (truth, _) = Ready::new(&opened, &reference)?.sample(&images, &labels, &mut |_| Ok(()))?;
    bar.inc(1);
    let mut rows = Vec::new();
    for (ready, s) in ready.iter().zip(&settings) {
        let (latents, costs) = ready.sample(&images, &labels, &mut |_| Ok(()))?;
        let series = format!("{} {} {}", s.allocation, s.solver, s.reuse);
        let distance = distance(&latents, &truth)?;
        // The dearest, where an adaptive policy spends more on one than on another.
        let cost = costs.into_iter().max_by_key(|cost| cost.applications).context("one picture at least")?;
        rows.push(Row { series, budget: s.budget.clone(), cost, distance });
        // Whole after every run, so that an interrupted sweep keeps what it has.
        files::replace(&command.out.join("sweep.csv"), |file| Ok(file.write_all(csv(&rows).as_bytes())?))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let plot = svg(&rows, &command.plot);
    files::replace(&command.out.join("sweep.svg"), |file| Ok(file.write_all(plot.as_bytes())?))?;
    println!("{} runs in {}", rows.len(), command.out.display());
    Ok(())
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let mean: f32 = (a - b)?.to_dtype(DType::F32)?.sqr()?.mean_all()?.to_scalar()?;
    Ok(f64::from(mean).sqrt())
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from(
        "allocation solver reuse,budget,solves,applications,block_passes,multiply_adds,seconds,mean_residual,distance\n",
    );
    for Row { series, budget, cost, distance } in rows {
        let Cost { solves, applications, block_passes, multiply_adds, seconds, .. } = cost;
        let residual = cost.mean_residual();
        text += &format!(
            "{series},{budget},{solves},{applications},{block_passes},{multiply_adds},{seconds:.4},{residual:e},{distance:e}\n"
        );
    }
    text
}

/// Curves over block passes, both axes logarithmic.
fn svg(rows: &[Row], plot: &str) -> String {
    const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999"];
    let point = |row: &Row| {
        let y = if plot == "residual" { row.cost.mean_residual() } else { row.distance };
        ((row.cost.block_passes.max(1) as f64).log10(), y.max(1e-12).log10())
    };
    let all: Vec<(f64, f64)> = rows.iter().map(point).collect();
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        (low - 0.05, high + 0.05)
    };
    let (x_range, y_range) = (range(&mut all.iter().map(|p| p.0)), range(&mut all.iter().map(|p| p.1)));
    let x = |v: f64| 70. + 480. * (v - x_range.0) / (x_range.1 - x_range.0);
    let y = |v: f64| 380. - 350. * (v - y_range.0) / (y_range.1 - y_range.0);
    let mut names: Vec<&str> = rows.iter().map(|r| r.series.as_str()).collect();
    names.dedup();
    let height = 440.max(40 + 18 * names.len());
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"820\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<path d=\"M70 30V380H550\" \
         fill=\"none\" stroke=\"black\"/>\n<text x=\"270\" y=\"420\">block passes</text>\n<text x=\"20\" y=\"20\">{}\
         </text>\n",
        if plot == "residual" { "mean residual of the solves" } else { "distance from converged solves" }
    );
    let mut ticks: Vec<usize> = rows.iter().map(|r| r.cost.block_passes).collect();
    ticks.sort_unstable();
    ticks.dedup();
    for tick in ticks.iter().step_by(ticks.len().div_ceil(6).max(1)) {
        text += &format!(
            "<text x=\"{:.0}\" y=\"397\" text-anchor=\"middle\">{tick}</text>\n",
            x((*tick.max(&1) as f64).log10())
        );
    }
    for i in 0..=4 {
        let v = y_range.0 + (y_range.1 - y_range.0) * f64::from(i) / 4.;
        text += &format!("<text x=\"62\" y=\"{:.0}\" text-anchor=\"end\">{:.1e}</text>\n", y(v) + 4., 10f64.powf(v));
    }
    for (i, name) in names.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        // Beyond the colours, dashes tell them apart.
        let dash = 2 * (i / COLOURS.len());
        let mut points: Vec<(f64, f64)> = rows.iter().filter(|r| r.series == *name).map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let line: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        text += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-dasharray=\"{}\"/>\n",
            line.join(" "),
            if dash == 0 { "none".to_owned() } else { format!("{},{dash}", 2 * dash) }
        );
        for p in &points {
            text += &format!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{colour}\"/>\n", x(p.0), y(p.1));
        }
        let name = name.replace('&', "&amp;").replace('<', "&lt;");
        text += &format!("<text x=\"565\" y=\"{}\" fill=\"{colour}\">{name}</text>\n", 40 + 18 * i);
    }
    text + "</svg>\n"
}
