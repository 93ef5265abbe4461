//! What sampling costs, in every unit that is compared.

use fpdm_core::dit::{Architecture, Config};
use serde::Serialize;

/// What a network's parts cost, for one image.
///
/// Multiply-adds count matrix products and attention, not norms or activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Blocks before the solve.
    pub pre: usize,
    /// Blocks of one application.
    pub group: usize,
    /// Blocks after the solve.
    pub post: usize,
    /// Multiply-adds before the solve, with all that is hoisted out of it.
    pub prepare: u64,
    /// Multiply-adds of one application.
    pub application: u64,
    /// Multiply-adds after the solve.
    pub readout: u64,
}

impl Work {
    /// A bare map: one block pass an application and no known multiply-adds.
    pub const MAP: Self = Self { pre: 0, group: 1, post: 0, prepare: 0, application: 0, readout: 0 };

    /// The work of a network of `config`.
    ///
    /// A block of width D with T tokens costs `T·(4·D² + 2·r·D² + 2·T·D) + 6·D²` (attention projections, an MLP of
    /// ratio r, scores and their sum, modulation). An application adds the two matrices `D → 2D` and `2D → D` of its
    /// projection. A DiT is one application of its whole depth.
    ///
    /// ```
    /// use fpdm_core::dit::{Config, Size};
    /// use fpdm_sample::Work;
    ///
    /// // FPDM-XL/2 spends 32 % more on an application than a block costs.
    /// let work = Work::of(&Config::fpdm(Size::XL, 2));
    /// let block = Work::of(&Config::dit(Size::XL, 2)).application / 28;
    /// assert!((work.application as f64 / block as f64 - 1.32).abs() < 0.01);
    /// ```
    pub fn of(config: &Config) -> Self {
        let (d, t) = (config.hidden_size as u64, config.tokens() as u64);
        let modulation = |parts: u64| parts * d * d;
        let tokens = t * (4 * d * d + 2 * d * config.mlp_hidden() as u64 + 2 * t * d);
        let block = tokens + modulation(6);
        let patch = (config.patch_size * config.patch_size) as u64;
        let embed = t * d * config.in_channels as u64 * patch + 256 * d + d * d;
        let last = t * d * config.out_channels() as u64 * patch + modulation(2);
        match config.architecture {
            Architecture::Dit => Self {
                pre: 0,
                group: config.depth,
                post: 0,
                prepare: embed,
                application: config.depth as u64 * block,
                readout: last,
            },
            Architecture::Fpdm => {
                let group = config.group as u64;
                Self {
                    pre: config.pre_depth,
                    group: config.group,
                    post: config.post_depth,
                    // The injection D → D, its share D → 2D of the first projection, and the group's modulations.
                    prepare: embed + config.pre_depth as u64 * block + t * 3 * d * d + group * modulation(6),
                    application: t * 4 * d * d + group * tokens,
                    readout: config.post_depth as u64 * block + last,
                }
            }
        }
    }
}

/// One solve of a trajectory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SolveRecord {
    /// The time that the network was told.
    pub t: f64,
    /// Applications spent.
    pub applications: usize,
    /// `‖f(z) − z‖ / ‖f(z)‖` at the last application: of the image, or of the batch's worst where all spend the same.
    pub residual: f64,
    /// How many times smaller the residual became with every application; unknown where it was measured once.
    pub rate: Option<f64>,
}

/// What a trajectory has cost, for one image.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Fixed points solved for.
    pub solves: usize,
    /// Applications of the map.
    pub applications: usize,
    /// Transformer blocks run: before, in and after the solves.
    pub block_passes: usize,
    /// Multiplications with an addition.
    pub multiply_adds: u64,
    /// Wall-clock seconds of the whole batch, once the device had finished.
    pub seconds: f64,
    /// Every solve, in order of time spent: conditional branch first, then the unconditional one.
    pub records: Vec<SolveRecord>,
}

impl Cost {
    /// Adds one solve that was read out `readouts` times.
    pub(crate) fn add(&mut self, work: &Work, record: SolveRecord, readouts: usize) {
        self.solves += 1;
        self.applications += record.applications;
        self.block_passes += work.pre + record.applications * work.group + readouts * work.post;
        self.multiply_adds +=
            work.prepare + record.applications as u64 * work.application + readouts as u64 * work.readout;
        self.records.push(record);
    }

    /// Both costs together; seconds add up too.
    pub fn and(mut self, other: Cost) -> Self {
        self.solves += other.solves;
        self.applications += other.applications;
        self.block_passes += other.block_passes;
        self.multiply_adds += other.multiply_adds;
        self.seconds += other.seconds;
        self.records.extend(other.records);
        self
    }

    /// The mean of the solves' last residuals; 0 without a solve.
    pub fn mean_residual(&self) -> f64 {
        self.records.iter().map(|r| r.residual).sum::<f64>() / self.records.len().max(1) as f64
    }
}

/// Something that has spent applications.
pub trait Account {
    /// What was spent so far, for each image of the batch, or once if all spend the same; without seconds, which the
    /// [`Sampler`](crate::Sampler) counts.
    fn costs(&self) -> Vec<Cost>;
}
