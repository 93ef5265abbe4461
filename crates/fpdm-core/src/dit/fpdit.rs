//! The implicit network of FPDM (Bai and Melas-Kyriazi 2024, arXiv 2401.08741, section 3.2).

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::around::after_by_hand;
use super::block::{Block, Modulation};
use super::condition::{Conditioner, Inputs};
use super::config::{Architecture, Config};
use super::embed::Embedder;
use super::final_layer::FinalLayer;
use super::linear::Linear;
use super::parameters::Weights;
use crate::{Detached, Error, FixedPointMap, ImplicitModel, Problem, Result, Staged};

/// Pre-layers, an implicit group of blocks, post-layers.
///
/// [`ImplicitModel::prepare`] runs the pre-layers and returns the [`Problem`] to solve; [`Problem::readout`] runs the
/// post-layers. Cloning is cheap: weights are shared.
#[derive(Clone, Debug)]
pub struct Fpdit {
    config: Config,
    pub(super) embedder: Arc<Embedder>,
    conditioner: Conditioner,
    pub(super) pre: Vec<Block>,
    pub(super) injection: Linear,
    pub(super) fc1: Linear,
    fc2: Linear,
    group: Vec<Block>,
    post: Arc<Vec<Block>>,
    final_layer: Arc<FinalLayer>,
}

/// What is computed before the solve; [`Fpdit::problem`] makes the problem of it.
#[derive(Clone, Debug)]
pub struct Features {
    /// The embedding of the time alone, `(B, D)`.
    pub cond_t: Tensor,
    /// The embedding of the label alone, `(B, D)`; `None` for a network without labels.
    pub cond_y: Option<Tensor>,
    /// Tokens with positions, `(B, T, D)`.
    pub embed: Tensor,
    /// After the pre-layers, `(B, T, D)`: where the solve starts.
    pub pre: Tensor,
    /// What every application is given, `(B, T, D)`.
    pub injection: Tensor,
}

impl Fpdit {
    /// Reads the parameters of [`Config::parameters`] from `vb`.
    ///
    /// # Errors
    /// A bad config; or [`Error::Weights`] that names every tensor that is missing or has another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if config.architecture != Architecture::Fpdm {
            return Err(Error::config("architecture", "\"dit\" has no implicit part; build it with `Dit::new`"));
        }
        let weights = Weights::read(config, &vb)?;
        let blocks =
            |name: &str, n: usize| (0..n).map(|i| Block::read(&weights, &format!("{name}.{i}"), config)).collect();
        Ok(Self {
            config: config.clone(),
            embedder: Arc::new(Embedder::read(&weights, config)?),
            conditioner: Conditioner::read(&weights, config, "")?,
            pre: blocks("blocks_pre", config.pre_depth),
            injection: Linear::read(&weights, "block_pre_projection"),
            fc1: Linear::read(&weights, "block_fixed_point_projection_fc1"),
            fc2: Linear::read(&weights, "block_fixed_point_projection_fc2"),
            group: config.implicit_block_names().iter().map(|name| Block::read(&weights, name, config)).collect(),
            post: Arc::new(blocks("blocks_post", config.post_depth)),
            final_layer: Arc::new(FinalLayer::read(&weights)),
        })
    }

    /// The settings it was built with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The dtype of the weights, which the latents must have.
    pub fn dtype(&self) -> candle_core::DType {
        self.embedder.dtype()
    }

    /// Where the weights are.
    pub fn device(&self) -> &candle_core::Device {
        self.embedder.device()
    }

    /// Everything before the solve, for `x` `(B, C, H, W)`, `t` `(B)` and `y` `(B)` or `(B, L)`.
    pub fn features(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Features> {
        self.features_of(&self.checked(x, t, y)?)
    }

    fn checked(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Inputs> {
        let batch = self.embedder.check(x)?;
        Ok(Inputs { x: x.clone(), t: self.conditioner.times(t, batch)?, y: self.conditioner.labels(y, batch)? })
    }

    /// Everything before the solve, on the device alone.
    fn features_of(&self, Inputs { x, t, y }: &Inputs) -> Result<Features> {
        let embed = self.embedder.latents(x)?;
        let cond_t = self.conditioner.time(t)?;
        let cond_y = self.conditioner.label(y.as_ref())?;
        let silu_c = fpdm_kernels::silu(&self.outer_conditioning(&cond_t, cond_y.as_ref())?)?;
        let mut pre = embed.clone();
        for block in &self.pre {
            pre = block.forward(&pre, &block.modulate(&silu_c)?)?;
        }
        let injection = self.injection.forward(&pre)?;
        Ok(Features { cond_t, cond_y, embed, pre, injection })
    }

    /// The conditioning of pre-, post- and final layer, `(B, D)`.
    fn outer_conditioning(&self, cond_t: &Tensor, cond_y: Option<&Tensor>) -> Result<Tensor> {
        match cond_y {
            Some(y) if self.config.pre_post_timestep_conditioning => Ok((cond_t + y)?),
            Some(y) => Ok(y.clone()),
            None => Ok(cond_t.clone()),
        }
    }

    /// The problem for `features`. The starting point is cut from the graph: pre-layers learn through the injection
    /// alone (paper, Algorithm 1).
    pub fn problem(&self, features: &Features) -> Result<Problem> {
        self.problem_of(&self.state_of(features)?)
    }

    /// What [`Fpdit::problem_of`] wants: the start `(B, T, D)`, the injection's half of the projection `(B, T, 2 D)`,
    /// every modulation `(B, 6 D)`, and that of the final layer `(B, 2 D)`.
    fn state_of(&self, features: &Features) -> Result<Vec<Tensor>> {
        let Features { cond_t, cond_y, pre, injection, .. } = features;
        let map = self.bind(injection, &both(cond_t, cond_y.as_ref())?)?;
        let silu_c = fpdm_kernels::silu(&self.outer_conditioning(cond_t, cond_y.as_ref())?)?;
        self.state_with([pre.detach(), map.injected], map.modulations, &silu_c)
    }

    /// The state with this start and injection and the group's modulations; `silu_c` is what the post-layers are told.
    fn state_with(&self, first: [Tensor; 2], group: Vec<Modulation>, silu_c: &Tensor) -> Result<Vec<Tensor>> {
        let post: Vec<Modulation> = self.post.iter().map(|b| b.modulate(silu_c)).collect::<Result<_>>()?;
        let last = self.final_layer.modulate(silu_c)?;
        let modulations = group.into_iter().chain(post).map(|m| m.all);
        Ok(first.into_iter().chain(modulations).chain([last]).collect())
    }

    #[cfg(test)]
    pub(super) fn final_layer(&self) -> &FinalLayer {
        &self.final_layer
    }

    /// Whether layers go back as [`super::around`] writes it out.
    fn by_hand(&self, x: &Tensor) -> bool {
        let (width, heads) = (self.config.hidden_size, self.config.num_heads);
        fpdm_kernels::vjp::supports(x, width, width / heads)
    }

    /// [`Fpdit::state_of`] with the layers before the solve as one node, where the weights are being trained.
    fn trained_state(&self, Inputs { x, t, y }: &Inputs) -> Result<Vec<Tensor>> {
        let cond_t = self.conditioner.time(t)?;
        let cond_y = self.conditioner.label(y.as_ref())?;
        let silu = |c: &Tensor| fpdm_kernels::silu(c);
        let outer = silu(&self.outer_conditioning(&cond_t, cond_y.as_ref())?)?;
        let inner = silu(&both(&cond_t, cond_y.as_ref())?)?;
        let pre: Vec<Modulation> = self.pre.iter().map(|b| b.modulate(&outer)).collect::<Result<_>>()?;
        let group = self.group.iter().map(|b| b.modulate(&inner)).collect::<Result<_>>()?;
        self.state_with(self.before_by_hand(x, &pre)?, group, &outer)
    }

    /// The problem that [`Fpdit::state_of`] describes.
    fn problem_of(&self, state: &[Tensor]) -> Result<Problem> {
        let blocks = self.group.len() + self.post.len();
        let [z0, injected, modulations @ .., last] = state else {
            return Err(Error::shape("`state` of a problem", blocks + 3, state.len()));
        };
        if modulations.len() != blocks {
            return Err(Error::shape("`state` of a problem", blocks + 3, state.len()));
        }
        let all = modulations.iter().map(|all| Modulation::of(all.clone())).collect::<Result<Vec<_>>>()?;
        let (group, post_modulations) = all.split_at(self.group.len());
        let map = self.bound(injected.clone(), group.to_vec())?;
        // Detached weights make no graph; `Detached` sees to it that a tracked point makes none either.
        let frozen = Detached(Arc::new(map.detach()));
        let (modulations, last) = (post_modulations.to_vec(), last.clone());
        let (post, final_layer, embedder) = (self.post.clone(), self.final_layer.clone(), self.embedder.clone());
        let supported = self.by_hand(z0);
        let readout = move |z: &Tensor| {
            let tracked = z.track_op() || last.track_op() || final_layer.linear.w.track_op();
            let tokens = match tracked && supported {
                true => after_by_hand(&post, &final_layer, z, &modulations, &last)?,
                false => final_layer.forward(&run_blocks(&post, &modulations, z)?, &FinalLayer::halves(&last)?)?,
            };
            embedder.unpatchify(&tokens)
        };
        let map = Arc::new(map);
        let problem = Problem::new(map.clone(), z0.clone(), readout).with_frozen(Arc::new(frozen));
        Ok(match supported {
            true => problem.with_reversible(map),
            false => problem,
        })
    }

    /// The map for an injection `(B, T, D)` and a conditioning `c` `(B, D)`, with all that is constant during a solve
    /// computed here.
    pub fn bind(&self, injection: &Tensor, c: &Tensor) -> Result<ImplicitMap> {
        // fc1([z, i]) = z Wzᵀ + (i Wiᵀ + b): the second term does not change during a solve.
        let injected = fpdm_kernels::linear(injection, &self.w_i()?, Some(&self.fc1.b))?;
        let silu_c = fpdm_kernels::silu(c)?;
        self.bound(injected, self.group.iter().map(|b| b.modulate(&silu_c)).collect::<Result<_>>()?)
    }

    /// The injection's half of the projection.
    pub(super) fn w_i(&self) -> Result<Tensor> {
        let d = self.config.hidden_size;
        Ok(self.fc1.w.narrow(1, d, d)?)
    }

    fn bound(&self, injected: Tensor, modulations: Vec<Modulation>) -> Result<ImplicitMap> {
        let w_z = self.fc1.w.narrow(1, 0, self.config.hidden_size)?;
        let (fc1, fc2) = (self.fc1.clone(), self.fc2.clone());
        Ok(ImplicitMap { w_z, injected, fc1, fc2, blocks: self.group.clone(), modulations })
    }

    /// The post-layers alone, `(B, T, D)` to `(B, T, D)`, before the final layer.
    pub fn post(&self, z: &Tensor, features: &Features) -> Result<Tensor> {
        let silu_c = fpdm_kernels::silu(&self.outer_conditioning(&features.cond_t, features.cond_y.as_ref())?)?;
        let modulations: Vec<Modulation> = self.post.iter().map(|b| b.modulate(&silu_c)).collect::<Result<_>>()?;
        run_blocks(&self.post, &modulations, z)
    }
}

/// What the implicit part is told.
fn both(cond_t: &Tensor, cond_y: Option<&Tensor>) -> Result<Tensor> {
    match cond_y {
        Some(y) => Ok((cond_t + y)?),
        None => Ok(cond_t.clone()),
    }
}

fn run_blocks(blocks: &[Block], modulations: &[Modulation], z: &Tensor) -> Result<Tensor> {
    let mut z = z.clone();
    for (block, modulation) in blocks.iter().zip(modulations) {
        z = block.forward(&z, modulation)?;
    }
    Ok(z)
}

impl ImplicitModel for Fpdit {
    fn prepare(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Problem> {
        let inputs = self.checked(x, t, y)?;
        let trained = self.injection.w.track_op() && !x.track_op() && !self.pre.is_empty();
        match trained && self.by_hand(x) {
            true => self.problem_of(&self.trained_state(&inputs)?),
            false => self.problem(&self.features_of(&inputs)?),
        }
    }

    fn staged(&self) -> Option<Arc<dyn Staged>> {
        Some(Arc::new(self.clone()))
    }
}

impl Staged for Fpdit {
    fn inputs(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Vec<Tensor>> {
        Ok(self.checked(x, t, y)?.into_vec())
    }

    fn state(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.state_of(&self.features_of(&Inputs::from_slice(inputs)?)?)
    }

    fn assemble(&self, state: &[Tensor]) -> Result<Problem> {
        self.problem_of(state)
    }
}

/// `z ↦ blocks(fc2(gelu(fc1([z, injection]))), c)`, bound to its injection and conditioning.
#[derive(Clone, Debug)]
pub struct ImplicitMap {
    pub(super) w_z: Tensor,
    pub(super) injected: Tensor,
    /// The whole projection, of which `w_z` is the state's half.
    pub(super) fc1: Linear,
    pub(super) fc2: Linear,
    pub(super) blocks: Vec<Block>,
    pub(super) modulations: Vec<Modulation>,
}

impl ImplicitMap {
    /// The same map outside any graph, sharing storage with the weights.
    pub fn detach(&self) -> Self {
        Self {
            w_z: self.w_z.detach(),
            injected: self.injected.detach(),
            fc1: self.fc1.detach(),
            fc2: self.fc2.detach(),
            blocks: self.blocks.iter().map(Block::detach).collect(),
            modulations: self.modulations.iter().map(Modulation::detach).collect(),
        }
    }
}

impl FixedPointMap for ImplicitMap {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        let h = fpdm_kernels::linear_add_gelu(z, &self.w_z, &self.injected)?; // (B, T, 2 D)
        run_blocks(&self.blocks, &self.modulations, &self.fc2.forward(&h)?)
    }

    fn rows(&self, rows: &[usize]) -> Result<Option<Arc<dyn FixedPointMap>>> {
        let index: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let index = Tensor::from_vec(index, rows.len(), self.injected.device())?;
        let modulations = self.modulations.iter().map(|m| m.rows(&index)).collect::<Result<_>>()?;
        let injected = self.injected.contiguous()?.index_select(&index, 0)?;
        Ok(Some(Arc::new(Self { injected, modulations, ..self.clone() })))
    }
}
