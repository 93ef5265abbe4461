//! From settings to pictures: everything is checked first, then sampled batch by batch.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use fpdm_core::dit::{Architecture, Labels};
use fpdm_core::{Level, Solver};
use fpdm_sample::{
    Branches, Cost, FixedPointDenoiser, Guidance, Guided, ImageNoise, IterationGuidance, Ledger, Plan, Progress,
    Sampler, Spend, WarmStart,
};
use fpdm_vae::image::{Picture, from_tensor, grid};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::files::{self, Origin};
use super::network::Opened;
use super::options::{Options, Settings};
use super::{choice, stop};

/// A trajectory whose settings are known to fit each other.
pub struct Ready<'a> {
    opened: &'a Opened,
    settings: &'a Settings,
    /// The noise levels.
    pub plan: Plan,
    solver: Box<dyn Solver>,
    warm_start: WarmStart,
    guidance: Guidance,
    iteration_guidance: Option<IterationGuidance>,
    ledgers: (Ledger, Ledger),
}

impl<'a> Ready<'a> {
    /// Refuses what does not fit, with the fix, before any work.
    pub fn new(opened: &'a Opened, settings: &'a Settings) -> Result<Self> {
        let rule = choice::rule(&settings.sampler)?;
        let plan = choice::plan(&settings.schedule, &settings.spacing, settings.steps, &settings.sampler)?;
        rule.check(&plan)?;
        let network = opened.network();
        network.check(&plan)?;
        ensure!(
            opened.config.learn_sigma || !choice::reads_variance(&settings.sampler),
            "--sampler {}: these weights have no variance; use ddpm:small or ddpm:large",
            settings.sampler
        );
        let interval = match settings.guidance_interval[..] {
            [least, most] => (least, most),
            _ => (0., 1.),
        };
        let guidance = Guidance { scale: settings.guidance, channels: settings.guided_channels, interval };
        guidance.check(opened.config.in_channels)?;
        let early = settings.iteration_guidance_early;
        let iteration_guidance = match settings.iteration_guidance {
            1. => None,
            scale => {
                ensure!(
                    scale.is_finite() && early > 0,
                    "--iteration-guidance {scale} away from iterate {early}: use a number, and 1 or more"
                );
                Some(IterationGuidance { early, scale })
            }
        };
        let levels = plan.evaluations(&*rule);
        let unconditional = levels.iter().filter(|&&level: &&Level| guidance.acts(level)).count();
        ensure!(
            unconditional == 0 || opened.config.labels != Labels::None,
            "--guidance {}: these weights have no labels; use 1",
            settings.guidance
        );
        let branches = Branches { conditional: levels.len(), unconditional, share: settings.unconditional_share };
        let each = if opened.config.architecture == Architecture::Dit { 1 } else { 4 };
        let spend = match &settings.budget {
            Some(text) => choice::spend(text)?,
            None => Spend::Applications(each * (branches.conditional + branches.unconditional)),
        };
        let ledgers = spend.split(&network.work, branches)?;
        for ledger in [&ledgers.0, &ledgers.1] {
            if ledger.solves() > 0 {
                choice::policy(&settings.allocation, ledger)?;
            }
        }
        Ok(Self {
            opened,
            settings,
            plan,
            solver: choice::solver(&settings.solver)?,
            warm_start: settings.reuse.parse()?,
            guidance,
            iteration_guidance,
            ledgers,
        })
    }

    /// Solves over both branches of guidance.
    pub fn solves(&self) -> usize {
        self.ledgers.0.solves() + self.ledgers.1.solves()
    }

    /// The latents of these images, `(B, C, H, W)`, and what each has cost.
    pub fn sample(
        &self,
        images: &[u64],
        classes: &[Option<u32>],
        on_step: &mut dyn FnMut(&Progress) -> Result<()>,
    ) -> Result<(Tensor, Cost)> {
        let branch = |classes: &[Option<u32>], ledger: &Ledger| -> Result<FixedPointDenoiser> {
            let labels = self.opened.labels(classes)?;
            let policy =
                choice::policy(if ledger.solves() == 0 { "uniform" } else { &self.settings.allocation }, ledger)?;
            let network = self.opened.network();
            let mut denoiser = FixedPointDenoiser::new(network, labels, &*self.solver, policy, ledger.clone());
            denoiser.warm_start = self.warm_start;
            denoiser.iteration_guidance = self.iteration_guidance;
            Ok(denoiser)
        };
        let denoiser = Guided {
            conditional: branch(classes, &self.ledgers.0)?,
            unconditional: branch(&vec![None; images.len()], &self.ledgers.1)?,
            guidance: self.guidance,
        };
        let [h, w] = self.opened.config.input_size;
        let mut noise = ImageNoise::new(self.settings.seed, images);
        let x = noise.start((self.opened.config.in_channels, h, w), DType::F32, &self.opened.device)?;
        let rule = choice::rule(&self.settings.sampler)?;
        let mut sampler = Sampler::new(&self.plan, rule, denoiser, x, Box::new(noise))?;
        for progress in sampler.by_ref() {
            on_step(&progress?)?;
            stop::check()?;
        }
        Ok((sampler.finish()?, sampler.cost()))
    }
}

#[derive(Serialize)]
struct Report<'a> {
    settings: &'a Settings,
    device: String,
    parameters: usize,
    /// Seconds for everything but opening the weights.
    seconds: f64,
    pictures: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    file: String,
    image: u64,
    label: Option<u32>,
    name: Option<&'static str>,
    cost: Cost,
}

/// Runs a command: pictures, a grid, and the account as JSON.
pub fn run(mut options: Options, label_of: &dyn Fn(&Opened, u64) -> Result<Option<u32>>) -> Result<()> {
    let mut repeated = None;
    if let Some(path) = &options.from_image {
        let origin = files::read_origin(path)?;
        let given = options.settings.clone();
        options.settings = origin.settings.clone();
        // Weights and codec may have moved.
        if given.hub.is_some() || given.weights.is_some() {
            let Settings { hub, weights, revision, .. } = given;
            options.settings = Settings { hub, weights, revision, ..options.settings };
        }
        options.settings.codec = given.codec.or(options.settings.codec);
        (options.first, options.num) = (origin.image, 1);
        repeated = Some(origin.label);
    }
    ensure!(options.num > 0, "--num 0: no picture to make; use 1 or more");
    ensure!(options.batch > 0, "--batch 0: no picture at a time; use 1 or more");
    ensure!(options.preview != Some(0), "--preview 0: use 1 for every step");
    files::prepare(&options.out)?;
    let opened = Opened::open(&options.settings, choice::device(&options.device)?)?;
    let ready = Ready::new(&opened, &options.settings)?;
    let images: Vec<u64> = (0..options.num).map(|i| options.first.wrapping_add(i)).collect();
    let labels = images
        .iter()
        .map(|&image| repeated.map_or_else(|| label_of(&opened, image), Ok))
        .collect::<Result<Vec<_>>>()?;
    stop::listen()?;

    let batch = if options.settings.allocation.starts_with("adaptive") { 1 } else { options.batch };
    let begun = Instant::now();
    let batches = images.len().div_ceil(batch);
    let bar = ProgressBar::new((batches * ready.plan.steps().len()) as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {eta} left {msg}")?);
    let (mut pictures, mut entries) = (Vec::new(), Vec::new());
    for (part, labels) in images.chunks(batch).zip(labels.chunks(batch)) {
        let mut on_step = |progress: &Progress| -> Result<()> {
            bar.inc(1);
            if options.preview.is_some_and(|every| (progress.step.index + 1) % every == 0) {
                let now = decode(&opened, &progress.x0)?;
                files::write_png(&options.out.join("preview.png"), &together(&now)?, None)?;
            }
            Ok(())
        };
        let (latents, cost) = ready.sample(part, labels, &mut on_step)?;
        for ((picture, &image), &label) in decode(&opened, &latents)?.into_iter().zip(part).zip(labels) {
            let file = format!("{image:06}.png");
            let origin = Origin { settings: options.settings.clone(), image, label };
            files::write_png(&options.out.join(&file), &picture, Some(&origin))?;
            let name = label.map_or(Ok(None), |class| super::classes::name(class, opened.classes()))?;
            entries.push(Entry { file, image, label, name, cost: cost.clone() });
            pictures.push(picture);
        }
    }
    bar.finish_and_clear();
    files::write_png(&options.out.join("grid.png"), &together(&pictures)?, None)?;
    let report = Report {
        settings: &options.settings,
        device: format!("{:?}", opened.device.location()),
        parameters: opened.config.parameter_count(),
        seconds: begun.elapsed().as_secs_f64(),
        pictures: entries,
    };
    files::write_json(&options.out.join("samples.json"), &report)?;
    let cost = &report.pictures.first().context("one picture at least")?.cost;
    println!(
        "{} pictures in {}: each {} solves, {} applications, {} block passes, {:.3}e9 multiply-adds, mean residual \
         {:.2e}; {:.1} s in all",
        report.pictures.len(),
        options.out.display(),
        cost.solves,
        cost.applications,
        cost.block_passes,
        cost.multiply_adds as f64 / 1e9,
        cost.mean_residual(),
        report.seconds
    );
    Ok(())
}

fn decode(opened: &Opened, latents: &Tensor) -> Result<Vec<Picture>> {
    // One by one: a decoder needs far more memory than the sampler, and its picture must not depend on its neighbours.
    let one = |i| -> Result<Picture> {
        let pixels = opened.codec.decode(&latents.narrow(0, i, 1)?)?;
        from_tensor(&pixels)?.pop().context("a codec decodes to one picture a latent")
    };
    (0..latents.dim(0)?).map(one).collect()
}

fn together(pictures: &[Picture]) -> Result<Picture> {
    let columns = (pictures.len() as f64).sqrt().ceil() as usize;
    Ok(grid(pictures, columns.max(1), 2)?)
}
