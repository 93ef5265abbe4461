//! The DiT block with adaLN-Zero conditioning (Peebles and Xie 2023, arXiv 2212.09748, section 3.2 and figure 3).

use candle_core::Tensor;

use super::config::Config;
use super::linear::Linear;
use super::parameters::Weights;
use crate::Result;

/// Epsilon of every layer norm but the one before an MLP, see [`Config::mlp_norm_eps`].
pub(super) const NORM_EPS: f64 = 1e-6;

/// Attention and an MLP, each behind a modulated layer norm and a gate.
#[derive(Clone, Debug)]
pub struct Block {
    pub(super) heads: usize,
    pub(super) mlp_norm_eps: f64,
    pub(super) qkv: Linear,
    pub(super) proj: Linear,
    pub(super) fc1: Linear,
    pub(super) fc2: Linear,
    modulation: Linear,
}

/// The six vectors, each `(B, D)`, by which a block hears its conditioning. They depend on time and label only, so a
/// solve computes them once.
#[derive(Clone, Debug)]
pub struct Modulation {
    /// All six side by side, `(B, 6 D)`.
    pub(super) all: Tensor,
    pub(super) attention: [Tensor; 3],
    pub(super) mlp: [Tensor; 3],
}

impl Modulation {
    /// Shift, scale, gate of attention, then of the MLP, from `(B, 6 D)`.
    pub(super) fn of(all: Tensor) -> Result<Self> {
        let d = all.dim(1)? / 6;
        let part = |i: usize| all.narrow(1, i * d, d);
        let (attention, mlp) = ([part(0)?, part(1)?, part(2)?], [part(3)?, part(4)?, part(5)?]);
        Ok(Self { all, attention, mlp })
    }

    /// Those of the samples that `index`, `(N)` in u32, names.
    pub(super) fn rows(&self, index: &Tensor) -> Result<Self> {
        Self::of(self.all.contiguous()?.index_select(index, 0)?)
    }

    pub(super) fn detach(&self) -> Self {
        let detached = |part: &[Tensor; 3]| part.clone().map(|t| t.detach());
        Self { all: self.all.detach(), attention: detached(&self.attention), mlp: detached(&self.mlp) }
    }
}

impl Block {
    pub(super) fn read(weights: &Weights, name: &str, config: &Config) -> Self {
        let linear = |part: &str| Linear::read(weights, &format!("{name}.{part}"));
        Self {
            heads: config.num_heads,
            mlp_norm_eps: config.mlp_norm_eps,
            qkv: linear("attn.qkv"),
            proj: linear("attn.proj"),
            fc1: linear("mlp.fc1"),
            fc2: linear("mlp.fc2"),
            modulation: linear("adaLN_modulation.1"),
        }
    }

    /// The modulation for `silu(c)`, `(B, D)`. The caller applies SiLU, once for all blocks of one conditioning.
    pub fn modulate(&self, silu_c: &Tensor) -> Result<Modulation> {
        Modulation::of(self.modulation.forward(silu_c)?)
    }

    /// `(B, T, D)` to `(B, T, D)`.
    pub fn forward(&self, x: &Tensor, m: &Modulation) -> Result<Tensor> {
        let tracked = x.track_op() || m.all.track_op() || self.qkv.w.track_op();
        if tracked && fpdm_kernels::vjp::supports(x, x.dim(2)?, x.dim(2)? / self.heads) {
            return self.forward_by_hand(x, m);
        }
        self.forward_composed(x, m)
    }

    /// The same, as one operation after the other.
    pub(super) fn forward_composed(&self, x: &Tensor, m: &Modulation) -> Result<Tensor> {
        let [shift, scale, gate] = &m.attention;
        let h = fpdm_kernels::layer_norm_modulate(x, shift, scale, NORM_EPS)?;
        let h = fpdm_kernels::attention(&self.qkv.forward(&h)?, self.heads)?;
        let [shift, scale, last_gate] = &m.mlp;
        let proj = (&h, &self.proj.w, &self.proj.b);
        let (x, h) = fpdm_kernels::linear_gate_residual_norm(proj, (x, gate), (shift, scale), self.mlp_norm_eps)?;
        let h = fpdm_kernels::linear_gelu(&h, &self.fc1.w, Some(&self.fc1.b))?;
        Ok(fpdm_kernels::linear_gate_residual(&h, &self.fc2.w, &self.fc2.b, &x, last_gate)?)
    }

    /// The same block outside any graph, sharing storage.
    pub fn detach(&self) -> Self {
        Self {
            heads: self.heads,
            mlp_norm_eps: self.mlp_norm_eps,
            qkv: self.qkv.detach(),
            proj: self.proj.detach(),
            fc1: self.fc1.detach(),
            fc2: self.fc2.detach(),
            modulation: self.modulation.detach(),
        }
    }
}
