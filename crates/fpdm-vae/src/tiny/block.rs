//! The residual block.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use fpdm_core::Result;
use fpdm_kernels::{Conv2d, vjp};

use crate::conv::{Conv, SAME};

/// Three convolutions onto a shortcut, a ReLU after each.
#[derive(Clone, Debug)]
pub(super) struct Block {
    convs: [Conv; 3],
}

impl Block {
    pub(super) fn new(vb: VarBuilder, width: usize) -> Result<Self> {
        let relu = Conv2d { relu: true, ..SAME };
        let conv = |i: usize| Conv::new(vb.pp(format!("conv.{i}")), width, width, 3, true, relu);
        Ok(Self { convs: [conv(0)?, conv(2)?, conv(4)?] })
    }

    /// `(B, C, H, W)` → the same.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weights = self.weights();
        // Where the weights are fixed, three nodes make no gradients for them.
        let trained = weights.iter().all(|w| w.track_op());
        match trained && vjp::supports_pictures(x, self.convs[0].weight.dim(0)?) {
            true => self.forward_by_hand(x, &weights),
            false => {
                let [first, second, third] = &self.convs;
                third.forward_onto(&second.forward(&first.forward(x)?)?, x)
            }
        }
    }

    fn weights(&self) -> Vec<&Tensor> {
        self.convs.iter().flat_map(|conv| [Some(&conv.weight), conv.bias.as_ref()]).flatten().collect()
    }

    /// The same as one node of the graph: between three, each gradient would be added into zeros, which is several passes
    /// over all pixels.
    fn forward_by_hand(&self, x: &Tensor, weights: &[&Tensor]) -> Result<Tensor> {
        let [first, second, third] = self.convs.each_ref().map(Conv::detach);
        let kept = x.detach().contiguous()?;
        let one = first.forward(&kept)?;
        let two = second.forward(&one)?;
        let out = third.forward_onto(&two, &kept)?;
        let y = out.clone();
        let backward = move |g: &Tensor| {
            let g = g.contiguous()?;
            let last = vjp::conv2d_gradients(&two, &third.weight, &y, &g, third.how)?;
            let middle = vjp::conv2d_gradients(&one, &second.weight, &two, &last.x, second.how)?;
            let begin = vjp::conv2d_gradients(&kept, &first.weight, &one, &middle.x, first.how)?;
            let dx = (begin.x + last.sums)?;
            let nothing = Tensor::zeros((), g.dtype(), g.device())?;
            Ok(([dx, nothing], vec![begin.w, begin.b, middle.w, middle.b, last.w, last.b]))
        };
        let nothing = Tensor::zeros((), x.dtype(), x.device())?;
        Ok(vjp::opaque([x, &nothing], weights, &out, backward)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use candle_nn::VarMap;

    use super::*;
    use crate::fresh;

    /// One node against three: the result and every gradient.
    #[test]
    fn a_block_by_hand_equals_its_convolutions() -> Result<()> {
        let vars = VarMap::new();
        let block = Block::new(fresh(&vars, 3, DType::F64, &Device::Cpu), 5)?;
        let wave = |n: usize| -> Result<Tensor> {
            let values: Vec<f64> = (0..2 * 5 * 6 * 7).map(|i| ((i * n) as f64 * 0.37).sin()).collect();
            Ok(Tensor::from_vec(values, (2, 5, 6, 7), &Device::Cpu)?)
        };
        let (x, g) = (Var::from_tensor(&wave(3)?)?, wave(5)?);
        let [first, second, third] = &block.convs;
        let expected = third.forward_onto(&second.forward(&first.forward(&x)?)?, &x)?;
        let got = block.forward(&x)?;
        let norm = |t: &Tensor| t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
        assert!(norm(&(&got - &expected)?)? < 1e-13);
        let (got, expected) = ((got * &g)?.sum_all()?.backward()?, (expected * g)?.sum_all()?.backward()?);
        for var in vars.all_vars().iter().chain([&x]) {
            let (got, expected) = (got.get(var).expect("a gradient"), expected.get(var).expect("a gradient"));
            assert!(norm(&(got - expected)?)? <= 1e-12 * norm(expected)?, "{:?}", var.shape());
        }
        assert_eq!(vars.all_vars().len(), 6);
        Ok(())
    }
}
