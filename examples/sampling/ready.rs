//! From settings to latents: everything is checked first.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use fpdm_core::dit::Labels;
use fpdm_core::{Level, Solver};
use fpdm_sample::{
    Branches, Cost, FixedPointDenoiser, Guidance, Guided, ImageNoise, IterationGuidance, Ledger, Plan, Progress,
    Sampler, WarmStart,
};

use super::network::{Label, Opened};
use super::settings::Settings;
use super::{choice, stop};

/// A trajectory whose settings are known to fit each other.
pub(crate) struct Ready<'a> {
    opened: &'a Opened,
    settings: &'a Settings,
    /// The noise levels.
    pub(crate) plan: Plan,
    solver: Box<dyn Solver>,
    warm_start: WarmStart,
    guidance: Guidance,
    iteration_guidance: Option<IterationGuidance>,
    ledgers: (Ledger, Ledger),
}

impl<'a> Ready<'a> {
    /// Refuses what does not fit, with the fix, before any work.
    pub(crate) fn new(opened: &'a Opened, settings: &'a Settings) -> Result<Self> {
        let rule = choice::rule(&settings.sampler)?;
        let plan = choice::plan(&settings.schedule, &settings.spacing, settings.steps, &settings.sampler)?;
        rule.check(&plan)?;
        let network = opened.network(settings.prediction);
        network.check(&plan)?;
        ensure!(
            opened.said().learned_variance || !choice::reads_variance(&settings.sampler),
            "--sampler {}: these weights have learned no variance; use ddpm:small or ddpm:large",
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
        let spend = choice::spend(&settings.budget, branches.conditional + branches.unconditional)?;
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

    /// The latents of these images, `(B, C, H, W)`, and what each of them has cost.
    pub(crate) fn sample(
        &self,
        images: &[u64],
        labels: &[Option<Label>],
        on_step: &mut dyn FnMut(&Progress) -> Result<()>,
    ) -> Result<(Tensor, Vec<Cost>)> {
        let branch = |labels: &[Option<Label>], ledger: &Ledger| -> Result<FixedPointDenoiser> {
            let y = self.opened.labels(labels)?;
            let policy = || match ledger.solves() {
                0 => choice::policy("uniform", ledger),
                _ => choice::policy(&self.settings.allocation, ledger),
            };
            let (first, network) = (policy()?, self.opened.network(self.settings.prediction));
            let mut denoiser = match first.threshold() {
                None => FixedPointDenoiser::new(network, y, &*self.solver, first, ledger.clone()),
                // Whoever stops early does so on its own.
                Some(_) => {
                    let policies = labels.iter().map(|_| policy()).collect::<Result<Vec<_>>>()?;
                    FixedPointDenoiser::per_image(network, y, &*self.solver, policies, ledger.clone())
                }
            };
            denoiser.warm_start = self.warm_start;
            denoiser.iteration_guidance = self.iteration_guidance;
            Ok(denoiser)
        };
        let denoiser = Guided {
            conditional: branch(labels, &self.ledgers.0)?,
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
        Ok((sampler.finish()?, sampler.costs()))
    }
}
