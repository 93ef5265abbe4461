//! The layers before and after the solve as one node of the graph each.
//!
//! As separate nodes every gradient between two layers is added into zeros, three passes over memory, and each output is
//! copied once. Where there are kernels for it and something is tracked, [`Fpdit`] goes this way; the result is the same.

use candle_core::{DType, Tensor};
use fpdm_kernels::vjp::{self, WeightSum};

use super::block::{Block, Modulation, NORM_EPS};
use super::final_layer::FinalLayer;
use super::fpdit::Fpdit;
use super::reverse::{BlockKept, BlockSums, LinearSum, Once};
use crate::Result;

/// What a node's way back returns: the gradients of its two inputs, and of its weights.
type Pulled = ([Tensor; 2], Vec<Tensor>);

/// Side by side, `(B, ..)`.
fn together(parts: &[&Tensor]) -> Result<Tensor> {
    match parts {
        [one] => Ok((*one).clone()),
        several => Ok(Tensor::cat(several, 1)?),
    }
}

fn as_dtype(parts: Vec<Tensor>, dtype: DType) -> Result<Vec<Tensor>> {
    parts.iter().map(|part| Ok(part.to_dtype(dtype)?)).collect()
}

/// A chain of blocks: its output, and what the way back wants.
fn record_blocks(blocks: &[Block], modulations: &[Modulation], x: &Tensor) -> Result<(Tensor, Vec<BlockKept>)> {
    let (mut x, mut kept) = (x.clone(), Vec::with_capacity(blocks.len()));
    for (block, m) in blocks.iter().zip(modulations) {
        let (out, step) = block.record(&x, m)?;
        kept.push(step);
        x = out;
    }
    Ok((x, kept))
}

/// The gradients of a chain of blocks: that of its input, of the blocks' weights, and of each modulation.
fn pull_blocks(
    blocks: &[Block],
    kept: Vec<BlockKept>,
    modulations: &[Modulation],
    mut g: Tensor,
) -> Result<(Tensor, Vec<Tensor>, Vec<Tensor>)> {
    let mut parts = Vec::with_capacity(blocks.len());
    for ((block, kept), m) in blocks.iter().zip(kept).zip(modulations).rev() {
        let mut sums = BlockSums::new(block, m)?;
        g = block.pull(kept, m, &g, &mut sums)?;
        parts.push(sums.into_inner()?);
    }
    let (weights, modulations): (Vec<_>, Vec<_>) = parts.into_iter().rev().unzip();
    Ok((g, weights.into_iter().flatten().collect(), modulations))
}

impl Fpdit {
    /// The point where the solve starts, cut from the graph, and the injection's half of the projection, for latents `x`
    /// that nobody wants the gradient of, and the modulations of the pre-layers, at least one.
    pub(super) fn before_by_hand(&self, x: &Tensor, modulations: &[Modulation]) -> Result<[Tensor; 2]> {
        let patch = self.embedder.patch();
        let (plain_patch, projection, w_i, b_i) =
            (patch.detach(), self.injection.detach(), self.w_i()?, self.fc1.b.detach());
        let plain: Vec<Block> = self.pre.iter().map(Block::detach).collect();
        let m: Vec<Modulation> = modulations.iter().map(Modulation::detach).collect();
        let patches = self.embedder.patches(&x.detach())?;
        let embedder = self.embedder.clone();
        let (pre, kept) = record_blocks(&plain, &m, &embedder.tokens(&plain_patch, &patches)?)?;
        let kept = Once::new(kept);
        let injection = projection.forward(&pre)?;
        let plain_w_i = w_i.detach();
        let injected = fpdm_kernels::linear(&injection, &plain_w_i, Some(&b_i))?;

        let start = pre.clone();
        let backward = move |g: &Tensor| -> candle_core::Result<Pulled> {
            let pulled = || -> Result<Pulled> {
                let g = g.contiguous()?;
                let mut of_half = LinearSum::of(&plain_w_i, &b_i)?;
                of_half.add(&g, &injection)?;
                let dinjection = vjp::input_gradient(&g, &plain_w_i)?;
                let mut of_projection = LinearSum::new(&projection)?;
                of_projection.add(&dinjection, &pre)?;
                let dpre = vjp::input_gradient(&dinjection, &projection.w)?;
                drop(dinjection);
                let kept = kept.take(|| Ok(record_blocks(&plain, &m, &embedder.tokens(&plain_patch, &patches)?)?.1))?;
                let (dembed, of_blocks, dm) = pull_blocks(&plain, kept, &m, dpre)?;
                let mut of_patch = LinearSum::new(&plain_patch)?;
                of_patch.add(&dembed, &patches)?;
                let sums = of_patch.into_inner().into_iter().chain(of_blocks);
                let sums = sums.chain(of_projection.into_inner()).chain(of_half.into_inner()).collect();
                let dm = together(&dm.iter().collect::<Vec<_>>())?.to_dtype(g.dtype())?;
                // Nobody wants the first: the latents are not tracked.
                Ok(([dembed, dm], as_dtype(sums, g.dtype())?))
            };
            pulled().map_err(candle_core::Error::wrap)
        };
        let mut weights = vec![&patch.w, &patch.b];
        weights.extend(self.pre.iter().flat_map(Block::weights));
        weights.extend([&self.injection.w, &self.injection.b, &w_i, &self.fc1.b]);
        let all = together(&modulations.iter().map(|m| &m.all).collect::<Vec<_>>())?;
        let injected = vjp::opaque([&x.detach(), &all], &weights, &injected, backward)?;
        Ok([start, injected])
    }
}

/// Post-layers and final layer, `(B, T, D)` to `(B, T, p p O)`: `last` is the final layer's shift and scale side by side.
pub(super) fn after_by_hand(
    post: &[Block],
    final_layer: &FinalLayer,
    z: &Tensor,
    modulations: &[Modulation],
    last: &Tensor,
) -> Result<Tensor> {
    let plain: Vec<Block> = post.iter().map(Block::detach).collect();
    let m: Vec<Modulation> = modulations.iter().map(Modulation::detach).collect();
    let linear = final_layer.linear.detach();
    let [shift, scale] = FinalLayer::halves(&last.detach())?;
    let start = z.detach().contiguous()?;
    let (x, kept) = record_blocks(&plain, &m, &start)?;
    let out = linear.forward(&fpdm_kernels::layer_norm_modulate(&x, &shift, &scale, NORM_EPS)?)?;
    let kept = Once::new((x, kept));

    let backward = move |g: &Tensor| -> candle_core::Result<Pulled> {
        let pulled = || -> Result<Pulled> {
            let g = g.contiguous()?;
            let (x, kept) = kept.take(|| record_blocks(&plain, &m, &start))?;
            let mut of_linear = LinearSum::new(&linear)?;
            of_linear.add(&g, &fpdm_kernels::layer_norm_modulate(&x, &shift, &scale, NORM_EPS)?)?;
            let dh = vjp::input_gradient(&g, &linear.w)?;
            let (batch, width) = scale.dims2()?;
            let mut dlast = WeightSum::shaped((batch, 2 * width), &scale)?;
            let dx = vjp::norm_gradients((&x, &scale), &dh, None, NORM_EPS, &mut dlast)?;
            drop((dh, x));
            let dlast = dlast.into_inner();
            let (dz, mut sums, dm) = pull_blocks(&plain, kept, &m, dx)?;
            sums.extend(of_linear.into_inner());
            let parts: Vec<&Tensor> = dm.iter().chain([&dlast]).collect();
            Ok(([dz, together(&parts)?.to_dtype(g.dtype())?], as_dtype(sums, g.dtype())?))
        };
        pulled().map_err(candle_core::Error::wrap)
    };
    let mut weights: Vec<&Tensor> = post.iter().flat_map(Block::weights).collect();
    weights.extend([&final_layer.linear.w, &final_layer.linear.b]);
    let all = together(&modulations.iter().map(|m| &m.all).chain([last]).collect::<Vec<_>>())?;
    Ok(vjp::opaque([z, &all], &weights, &out, backward)?)
}

#[cfg(test)]
mod tests {
    use candle_core::backprop::GradStore;
    use candle_core::{Device, Var};
    use candle_nn::VarBuilder;

    use super::super::config::{Config, Size};
    use super::super::init::{init, perturb_gates};
    use super::*;
    use crate::ImplicitModel;

    fn wave(n: usize, shape: &[usize]) -> Result<Tensor> {
        let values: Vec<f64> = (0..shape.iter().product()).map(|i: usize| ((i * n) as f64 * 0.37).sin()).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// One node before and one behind against a node or an operation a layer: results and every gradient, for any number
    /// of layers, with the layers told the time and not.
    #[test]
    fn nodes_equal_layers() -> Result<()> {
        for (pre_depth, post_depth, told) in [(1, 1, true), (2, 3, false), (1, 0, false)] {
            let config = Config {
                hidden_size: 24,
                num_heads: 3,
                input_size: [4, 6],
                pre_depth,
                post_depth,
                pre_post_timestep_conditioning: told,
                ..Config::fpdm(Size::S, 2)
            };
            let vars = init(&config, 1, DType::F64, &Device::Cpu)?;
            perturb_gates(&config, &vars, 2, 0.3)?;
            let model = Fpdit::new(&config, VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu))?;
            let x = wave(3, &[2, 4, 4, 6])?;
            let t = Tensor::new(&[0.3f64, 40.], &Device::Cpu)?;
            let y = Tensor::new(&[1u32, 7], &Device::Cpu)?;
            let run = |by_hand: bool| -> Result<(Tensor, GradStore, Tensor)> {
                let problem = match by_hand {
                    true => model.prepare(&x, &t, &y)?,
                    false => model.problem(&model.features(&x, &t, &y)?)?,
                };
                let z = problem.map.apply(&problem.z0)?;
                // A variable between, as in training, gets the gradient of what is behind.
                let point = Var::from_tensor(&z.detach())?;
                let output = match by_hand {
                    true => problem.readout(&point)?,
                    false => {
                        let features = model.features(&x, &t, &y)?;
                        let silu_c = fpdm_kernels::silu(&match told {
                            true => (&features.cond_t + features.cond_y.as_ref().expect("labels"))?,
                            false => features.cond_y.clone().expect("labels"),
                        })?;
                        let last = FinalLayer::halves(&model.final_layer().modulate(&silu_c)?)?;
                        let tokens = model.final_layer().forward(&model.post(&point, &features)?, &last)?;
                        model.embedder.unpatchify(&tokens)?
                    }
                };
                let behind = (&output * wave(5, output.dims())?)?.sum_all()?.backward()?;
                let dz = behind.get(&point).expect("the point's").clone();
                let loss = ((&z * wave(7, z.dims())?)?.sum_all()? + (&output * wave(5, output.dims())?)?.sum_all()?)?;
                Ok((output.detach(), loss.backward()?, dz.detach()))
            };
            let ((output, got, dz), (expected_output, expected, expected_dz)) = (run(true)?, run(false)?);
            let norm = |t: &Tensor| t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
            assert!(norm(&(output - expected_output)?)? < 1e-13);
            assert!(norm(&(dz - &expected_dz)?)? < 1e-12 * norm(&expected_dz)?);
            for (name, var) in vars.data().lock().expect("the only user").iter() {
                let expected = expected.get(var).expect("every parameter has a gradient");
                let got = got.get(var).expect(name);
                assert!(norm(&(got - expected)?)? <= 1e-12 * norm(expected)?, "{name}");
            }
        }
        Ok(())
    }
}
