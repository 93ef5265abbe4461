//! The way back through the implicit map, written out.
//!
//! Of an application this keeps, in units of `(B, T, D)`: the point (1), the argument of the projection's GELU (2), and
//! for each block its input (1), queries, keys and values (3), the attention (1), the argument of the MLP's GELU (4) and
//! the MLP's branch before its gate (1): 13 for one block, where an autograd graph of the same operations keeps 23.
//! The norms and both GELUs are computed again, passes over memory, and the attention's branch, the smallest product.

use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use fpdm_kernels::vjp::{self, Attention, GradientSum, WeightSum};

use super::block::{Block, Modulation, NORM_EPS};
use super::fpdit::ImplicitMap;
use super::linear::Linear;
use crate::reverse::{Kept, Reverse, Reversible};
use crate::{Error, Result};

struct Application {
    z: Tensor,
    argument: Tensor,
    blocks: Vec<BlockKept>,
}

/// What a block keeps of a pass.
pub(super) struct BlockKept {
    x: Tensor,
    qkv: Tensor,
    attention: Attention,
    argument: Tensor,
    mlp_branch: Tensor,
}

/// Sums of the gradients of an affine layer.
pub(super) struct LinearSum {
    w: WeightSum,
    b: WeightSum,
}

impl LinearSum {
    pub(super) fn new(linear: &Linear) -> Result<Self> {
        Self::of(&linear.w, &linear.b)
    }

    pub(super) fn of(w: &Tensor, b: &Tensor) -> Result<Self> {
        Ok(Self { w: WeightSum::new(w)?, b: WeightSum::new(b)? })
    }

    pub(super) fn add(&mut self, g: &Tensor, x: &Tensor) -> Result<()> {
        self.w.add_product(g, x, 0)?;
        Ok(self.b.add_rows(g)?)
    }

    /// The sums of weight and bias.
    pub(super) fn into_inner(self) -> [Tensor; 2] {
        [self.w.into_inner(), self.b.into_inner()]
    }

    fn insert(self, linear: &Linear, store: &mut GradStore) -> Result<()> {
        store.insert(&linear.w, self.w.into_inner());
        store.insert(&linear.b, self.b.into_inner());
        Ok(())
    }
}

/// Sums over applications of the gradients of a block's weights and of what conditions it.
pub(super) struct BlockSums {
    qkv: LinearSum,
    proj: LinearSum,
    fc1: LinearSum,
    fc2: LinearSum,
    /// Shift and scale side by side, then the gate; of attention, then of the MLP.
    modulation: [WeightSum; 4],
}

impl BlockSums {
    pub(super) fn new(block: &Block, m: &Modulation) -> Result<Self> {
        let vectors = |parts: usize| -> Result<WeightSum> {
            let (batch, width) = m.mlp[0].dims2()?;
            Ok(WeightSum::shaped((batch, parts * width), &m.mlp[0])?)
        };
        Ok(Self {
            qkv: LinearSum::new(&block.qkv)?,
            proj: LinearSum::new(&block.proj)?,
            fc1: LinearSum::new(&block.fc1)?,
            fc2: LinearSum::new(&block.fc2)?,
            modulation: [vectors(2)?, vectors(1)?, vectors(2)?, vectors(1)?],
        })
    }

    /// The gradients of the weights in the order of [`Block::weights`], and that of [`Modulation::all`], in f32 or more.
    pub(super) fn into_inner(self) -> Result<(Vec<Tensor>, Tensor)> {
        let Self { qkv, proj, fc1, fc2, modulation } = self;
        let parts = modulation.map(WeightSum::into_inner);
        let weights = [qkv, proj, fc1, fc2].into_iter().flat_map(LinearSum::into_inner).collect();
        Ok((weights, Tensor::cat(&parts, 1)?))
    }
}

impl Block {
    /// [`Block::forward`] without a graph; `self` and `m` must be detached.
    ///
    /// Lets go by name, as [`Block::pull`] does.
    pub(super) fn record(&self, x: &Tensor, m: &Modulation) -> Result<(Tensor, BlockKept)> {
        let [shift, scale, gate] = &m.attention;
        let qkv = self.qkv.forward(&fpdm_kernels::layer_norm_modulate(x, shift, scale, NORM_EPS)?)?;
        let (out, attention) = vjp::attention(&qkv, self.heads)?;
        let branch = self.proj.forward(&out)?;
        let [shift, scale, last_gate] = &m.mlp;
        let parts = (x, gate, &branch);
        let (sum, normed) = vjp::gate_residual_norm(parts, (shift, scale), self.mlp_norm_eps)?;
        drop(branch);
        let (h, argument) = vjp::linear_gelu(&normed, &self.fc1.w, Some(&self.fc1.b), None)?;
        drop(normed);
        let mlp_branch = self.fc2.forward(&h)?;
        drop(h);
        let out = fpdm_kernels::gate_residual(&sum, last_gate, &mlp_branch)?;
        Ok((out, BlockKept { x: x.clone(), qkv, attention, argument, mlp_branch }))
    }

    /// [`Block::forward`] as one node of the graph.
    pub(super) fn forward_by_hand(&self, x: &Tensor, m: &Modulation) -> Result<Tensor> {
        let (plain, modulation, start) = (self.detach(), m.detach(), x.detach().contiguous()?);
        let (out, kept) = plain.record(&start, &modulation)?;
        let kept = Once::new(kept);
        let backward = move |g: &Tensor| -> candle_core::Result<([Tensor; 2], Vec<Tensor>)> {
            let pulled = || -> Result<([Tensor; 2], Vec<Tensor>)> {
                let kept = kept.take(|| Ok(plain.record(&start, &modulation)?.1))?;
                let mut sums = BlockSums::new(&plain, &modulation)?;
                let dx = plain.pull(kept, &modulation, &g.contiguous()?, &mut sums)?;
                let (weights, dm) = sums.into_inner()?;
                let dm = dm.to_dtype(dx.dtype())?;
                let weights = weights.iter().map(|w| Ok(w.to_dtype(dx.dtype())?)).collect::<Result<_>>()?;
                Ok(([dx, dm], weights))
            };
            pulled().map_err(candle_core::Error::wrap)
        };
        Ok(vjp::opaque([x, &m.all], &self.weights(), &out, backward)?)
    }

    /// Its weights: weight and bias of each layer in turn.
    pub(super) fn weights(&self) -> Vec<&Tensor> {
        [&self.qkv, &self.proj, &self.fc1, &self.fc2].into_iter().flat_map(|l| [&l.w, &l.b]).collect()
    }

    /// From the gradient of the output to that of the input.
    ///
    /// What is not needed any more is let go by name: a shadowed tensor would live to the end, and this is where most
    /// memory is in use.
    pub(super) fn pull(&self, kept: BlockKept, m: &Modulation, g: &Tensor, sums: &mut BlockSums) -> Result<Tensor> {
        let BlockKept { x, qkv, attention, argument, mlp_branch } = kept;
        let (g, branch) = self.pull_mlp((&x, attention.out()), (argument, mlp_branch), m, g, sums)?;
        let [shift, scale, gate] = &m.attention;
        let dbranch = vjp::gate_gradients(&g, gate, &branch, &mut sums.modulation[1])?;
        drop(branch);
        sums.proj.add(&dbranch, attention.out())?;
        let dout = vjp::input_gradient(&dbranch, &self.proj.w)?;
        drop(dbranch);
        let dqkv = vjp::attention_gradient(&qkv, self.heads, &attention, &dout)?;
        drop((dout, qkv, attention));
        sums.qkv.add(&dqkv, &fpdm_kernels::layer_norm_modulate(&x, shift, scale, NORM_EPS)?)?;
        let dh = vjp::input_gradient(&dqkv, &self.qkv.w)?;
        drop(dqkv);
        Ok(vjp::norm_gradients((&x, scale), &dh, Some(&g), NORM_EPS, &mut sums.modulation[0])?)
    }

    /// From the gradient of the output to that between attention and MLP, for the input and the attention's result; and
    /// the attention's branch, made again where the widest tensors are gone.
    fn pull_mlp(
        &self,
        (x, attention): (&Tensor, &Tensor),
        (argument, mlp_branch): (Tensor, Tensor),
        m: &Modulation,
        g: &Tensor,
        sums: &mut BlockSums,
    ) -> Result<(Tensor, Tensor)> {
        let [shift, scale, gate] = &m.mlp;
        let dbranch = vjp::gate_gradients(g, gate, &mlp_branch, &mut sums.modulation[3])?;
        drop(mlp_branch);
        let dh = vjp::input_gradient(&dbranch, &self.fc2.w)?;
        let (h, dargument) = vjp::gelu_gradient(argument, dh, Some(&mut sums.fc1.b))?;
        sums.fc2.add(&dbranch, &h)?;
        drop((h, dbranch));
        let branch = self.proj.forward(attention)?;
        let parts = (x, &m.attention[2], &branch);
        let (sum, h) = vjp::gate_residual_norm(parts, (shift, scale), self.mlp_norm_eps)?;
        sums.fc1.w.add_product(&dargument, &h, 0)?;
        drop(h);
        let dh = vjp::input_gradient(&dargument, &self.fc1.w)?;
        drop(dargument);
        let of_sum = &mut sums.modulation[2];
        Ok((vjp::norm_gradients((&sum, scale), &dh, Some(g), self.mlp_norm_eps, of_sum)?, branch))
    }
}

/// What a way back uses up. A graph that is walked again computes it again.
pub(super) struct Once<T>(Mutex<Option<T>>);

impl<T> Once<T> {
    pub(super) fn new(kept: T) -> Self {
        Self(Mutex::new(Some(kept)))
    }

    pub(super) fn take(&self, again: impl FnOnce() -> Result<T>) -> Result<T> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.map_or_else(again, Ok)
    }
}

impl Reversible for ImplicitMap {
    fn record(&self, z: &Tensor) -> Result<(Tensor, Kept)> {
        self.detach().recorded(z)
    }

    fn begin(&self) -> Result<Box<dyn Reverse + '_>> {
        Ok(Box::new(Way {
            map: self,
            plain: self.detach(),
            fc1: WeightSum::new(&self.fc1.w)?,
            fc2: LinearSum::new(&self.fc2)?,
            blocks: self
                .blocks
                .iter()
                .zip(&self.modulations)
                .map(|(b, m)| BlockSums::new(b, m))
                .collect::<Result<_>>()?,
            injected: GradientSum::default(),
        }))
    }
}

impl ImplicitMap {
    fn recorded(&self, z: &Tensor) -> Result<(Tensor, Kept)> {
        let z = z.detach();
        let (h, argument) = vjp::linear_gelu(&z, &self.w_z, None, Some(&self.injected))?;
        let mut x = self.fc2.forward(&h)?;
        drop(h);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (block, m) in self.blocks.iter().zip(&self.modulations) {
            let (out, kept) = block.record(&x, m)?;
            blocks.push(kept);
            x = out;
        }
        Ok((x, Box::new(Application { z, argument, blocks })))
    }
}

struct Way<'a> {
    map: &'a ImplicitMap,
    /// The same outside the graph.
    plain: ImplicitMap,
    /// Of the whole projection; only the state's columns are filled here.
    fc1: WeightSum,
    fc2: LinearSum,
    blocks: Vec<BlockSums>,
    injected: GradientSum,
}

impl Reverse for Way<'_> {
    fn pull(&mut self, kept: Kept, gradient: &Tensor) -> Result<Tensor> {
        let Ok(kept) = kept.downcast::<Application>() else {
            return Err(Error::config("kept", "was recorded by another map; record and pull with the same one"));
        };
        let Application { z, argument, blocks: kept } = *kept;
        let mut g = gradient.detach().contiguous()?;
        let blocks = self.plain.blocks.iter().zip(&self.plain.modulations).zip(kept).zip(&mut self.blocks);
        for (((block, m), kept), sums) in blocks.rev() {
            g = block.pull(kept, m, &g, sums)?;
        }
        let dh = vjp::input_gradient(&g, &self.plain.fc2.w)?;
        let (h, dargument) = vjp::gelu_gradient(argument, dh, None)?;
        self.fc2.add(&g, &h)?;
        drop((g, h));
        self.fc1.add_product(&dargument, &z, 0)?;
        let g = vjp::input_gradient(&dargument, &self.plain.w_z)?;
        self.injected.add(dargument)?;
        Ok(g)
    }

    fn finish(self: Box<Self>, sink: &mut dyn FnMut(GradStore) -> Result<()>) -> Result<()> {
        let Self { map, fc1, fc2, blocks, injected, .. } = *self;
        // What the map was bound to has a graph of its own, which goes on from here.
        let mut pairs = Vec::new();
        pairs.extend(injected.into_inner().map(|g| (&map.injected, g)));
        let mut store = GradStore::default();
        store.insert(&map.fc1.w, fc1.into_inner());
        fc2.insert(&map.fc2, &mut store)?;
        for ((block, m), sums) in map.blocks.iter().zip(&map.modulations).zip(blocks) {
            let (sums, dm) = sums.into_inner()?;
            for (weight, sum) in block.weights().into_iter().zip(sums) {
                store.insert(weight, sum);
            }
            pairs.push((&m.all, dm));
        }
        sink(store)?;
        let mut root: Option<Tensor> = None;
        for (y, g) in pairs {
            let more = vjp::cotangent(y, &g.to_dtype(y.dtype())?)?;
            root = Some(match root {
                Some(root) => (root + more)?,
                None => more,
            });
        }
        match root {
            Some(root) if root.track_op() => sink(root.backward()?),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use candle_nn::VarBuilder;

    use super::super::config::{Config, Size};
    use super::super::init::{init, perturb_gates};
    use super::super::parameters::Weights;
    use super::*;

    /// One node against autograd through one operation after the other: the result and every gradient.
    #[test]
    fn a_block_by_hand_equals_its_operations() -> Result<()> {
        let config = Config { hidden_size: 24, num_heads: 3, ..Config::fpdm(Size::S, 2) };
        let vars = init(&config, 1, DType::F64, &Device::Cpu)?;
        perturb_gates(&config, &vars, 2, 0.3)?;
        let weights = Weights::read(&config, &VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu))?;
        let block = Block::read(&weights, "blocks_pre.0", &config);
        let wave = |n: usize, shape: &[usize]| -> Result<Var> {
            let values: Vec<f64> = (0..shape.iter().product()).map(|i: usize| ((i * n) as f64 * 0.37).sin()).collect();
            Ok(Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?)
        };
        let (x, c, g) = (wave(3, &[2, 5, 24])?, wave(7, &[2, 24])?, wave(5, &[2, 5, 24])?);
        let run = |by_hand: bool| -> Result<(Tensor, GradStore)> {
            let m = block.modulate(&c)?;
            let y = if by_hand { block.forward_by_hand(&x, &m)? } else { block.forward_composed(&x, &m)? };
            let root = (&y * g.as_detached_tensor())?.sum_all()?;
            let first = root.backward()?;
            // What the first walk used up is computed again.
            let second = root.backward()?;
            let same = |var: &Var| first.get(var).unwrap().eq(second.get(var).unwrap())?.min_all()?.to_scalar::<u8>();
            assert_eq!(same(&x)?, 1);
            Ok((y, second))
        };
        let ((y, got), (expected_y, expected)) = (run(true)?, run(false)?);
        let norm = |t: &Tensor| t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
        assert!(norm(&(y - expected_y)?)? < 1e-13);
        let mut compared = 0;
        for var in vars.all_vars().iter().chain([&x, &c]) {
            let Some(expected) = expected.get(var) else { continue };
            let got = got.get(var).expect("a gradient that autograd finds");
            assert!(norm(&(got - expected)?)? <= 1e-12 * norm(expected)?, "{:?}", var.shape());
            compared += 1;
        }
        assert_eq!(compared, 12, "five layers of two tensors each, the input and the conditioning");
        Ok(())
    }
}
