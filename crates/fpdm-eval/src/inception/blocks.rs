//! The blocks: several ways through, side by side.

use candle_core::{Device, Tensor};
use fpdm_core::Result;
use fpdm_kernels::Conv2d;

use super::pool::{average, largest};
use crate::conv::Folded;
use crate::weights::Weights;

/// A convolution, its batch norm and a ReLU.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    conv: Folded,
    stride: usize,
    /// Zeros around the picture: above and below, left and right.
    padding: [usize; 2],
}

impl Unit {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [y, x_] = self.padding;
        // The kernels of this workspace pad alike on both sides, or the picture is padded for them.
        let (x, padding) = match y == x_ {
            true => (x.clone(), y),
            false => (x.pad_with_zeros(2, y, y)?.pad_with_zeros(3, x_, x_)?, 0),
        };
        let how = Conv2d { stride: self.stride, before: padding, after: padding, relu: true, ..Conv2d::default() };
        self.conv.forward(&x, None, how)
    }
}

/// One way through a block: what comes first, convolutions, and convolutions that are all given their result.
#[derive(Clone, Debug)]
struct Way {
    pool: Pool,
    chain: Vec<Unit>,
    fork: Vec<Unit>,
}

#[derive(Clone, Copy, Debug)]
enum Pool {
    None,
    Average,
    /// With this stride; stride 1 keeps the size.
    Largest(usize),
}

impl Way {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let mut x = match self.pool {
            Pool::None => x.clone(),
            Pool::Average => average(x)?,
            Pool::Largest(1) => largest(x, 1, 1)?,
            Pool::Largest(stride) => largest(x, stride, 0)?,
        };
        for unit in &self.chain {
            x = unit.forward(&x)?;
        }
        match self.fork.is_empty() {
            true => Ok(vec![x]),
            false => self.fork.iter().map(|unit| unit.forward(&x)).collect(),
        }
    }
}

/// A block: the results of all ways, one after the other along the channels.
#[derive(Clone, Debug)]
pub(super) struct Mixed {
    ways: Vec<Way>,
}

impl Mixed {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let parts: Vec<Vec<Tensor>> = self.ways.iter().map(|way| way.forward(x)).collect::<Result<_>>()?;
        Ok(Tensor::cat(&parts.concat(), 1)?)
    }
}

/// Takes weights for units whose widths are given as published.
pub(super) struct Layers {
    weights: Weights,
    divisor: usize,
    device: Device,
}

impl Layers {
    pub(super) fn new(weights: Weights, divisor: usize, device: &Device) -> Self {
        Self { weights, divisor, device: device.clone() }
    }

    /// `from` is a real width, `to` a published one.
    pub(super) fn unit(
        &mut self,
        name: &str,
        from: usize,
        to: usize,
        kernel: [usize; 2],
        stride: usize,
        padding: usize,
    ) -> Result<Unit> {
        self.padded(name, from, to, kernel, stride, [padding; 2])
    }

    fn padded(
        &mut self,
        name: &str,
        from: usize,
        to: usize,
        kernel: [usize; 2],
        stride: usize,
        padding: [usize; 2],
    ) -> Result<Unit> {
        let shape = [to / self.divisor, from, kernel[0], kernel[1]];
        let (conv, norm) = (format!("{name}.conv"), format!("{name}.bn"));
        Ok(Unit { conv: Folded::new(&mut self.weights, &conv, &norm, shape, &self.device)?, stride, padding })
    }

    pub(super) fn finish(self, unused: impl Fn(&str) -> bool) -> Result<()> {
        self.weights.finish(unused)
    }
}

/// A unit of a way: its name in the block, published width, kernel, stride.
type Step = (&'static str, usize, [usize; 2], usize);

/// Collects the ways of one block.
struct Block<'a> {
    layers: &'a mut Layers,
    name: &'static str,
    from: usize,
    ways: Vec<Way>,
    width: usize,
}

impl Block<'_> {
    /// Stride 1 keeps the size, stride 2 has no padding.
    fn way(&mut self, pool: Pool, chain: &[Step], fork: &[Step]) -> Result<()> {
        let mut from = self.from;
        let unit = |layers: &mut Layers, from, &(name, to, kernel, stride): &Step| {
            let padding = if stride == 1 { kernel.map(|k| k / 2) } else { [0; 2] };
            layers.padded(&format!("{}.{name}", self.name), from, to, kernel, stride, padding)
        };
        let mut way = Way { pool, chain: Vec::new(), fork: Vec::new() };
        for step in chain {
            way.chain.push(unit(self.layers, from, step)?);
            from = step.1 / self.layers.divisor;
        }
        for step in fork {
            way.fork.push(unit(self.layers, from, step)?);
        }
        self.width += match fork.is_empty() {
            true => from,
            false => fork.iter().map(|step| step.1 / self.layers.divisor).sum(),
        };
        self.ways.push(way);
        Ok(())
    }
}

const ONE: [usize; 2] = [1, 1];
const THREE: [usize; 2] = [3, 3];

/// All blocks, for pictures with `from` channels.
pub(super) fn mixed(layers: &mut Layers, from: usize) -> Result<Vec<Mixed>> {
    let mut blocks = Vec::new();
    let mut from = from;
    let mut add = |name: &'static str, fill: &dyn Fn(&mut Block) -> Result<()>| -> Result<()> {
        let mut block = Block { layers, name, from, ways: Vec::new(), width: 0 };
        fill(&mut block)?;
        from = block.width;
        blocks.push(Mixed { ways: block.ways });
        Ok(())
    };
    for (name, pool) in [("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)] {
        add(name, &|block| fine(block, pool))?;
    }
    add("Mixed_6a", &halved_to_middle)?;
    for (name, inner) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
        add(name, &|block| middle(block, inner))?;
    }
    add("Mixed_7a", &halved_to_coarse)?;
    add("Mixed_7b", &|block| coarse(block, Pool::Average))?;
    add("Mixed_7c", &|block| coarse(block, Pool::Largest(1)))?;
    Ok(blocks)
}

fn fine(block: &mut Block, pool: usize) -> Result<()> {
    block.way(Pool::None, &[("branch1x1", 64, ONE, 1)], &[])?;
    block.way(Pool::None, &[("branch5x5_1", 48, ONE, 1), ("branch5x5_2", 64, [5, 5], 1)], &[])?;
    block.way(
        Pool::None,
        &[("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 1)],
        &[],
    )?;
    block.way(Pool::Average, &[("branch_pool", pool, ONE, 1)], &[])
}

fn halved_to_middle(block: &mut Block) -> Result<()> {
    block.way(Pool::None, &[("branch3x3", 384, THREE, 2)], &[])?;
    block.way(
        Pool::None,
        &[("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 2)],
        &[],
    )?;
    block.way(Pool::Largest(2), &[], &[])
}

fn middle(block: &mut Block, inner: usize) -> Result<()> {
    let (row, column) = ([1, 7], [7, 1]);
    block.way(Pool::None, &[("branch1x1", 192, ONE, 1)], &[])?;
    block.way(
        Pool::None,
        &[("branch7x7_1", inner, ONE, 1), ("branch7x7_2", inner, row, 1), ("branch7x7_3", 192, column, 1)],
        &[],
    )?;
    block.way(
        Pool::None,
        &[
            ("branch7x7dbl_1", inner, ONE, 1),
            ("branch7x7dbl_2", inner, column, 1),
            ("branch7x7dbl_3", inner, row, 1),
            ("branch7x7dbl_4", inner, column, 1),
            ("branch7x7dbl_5", 192, row, 1),
        ],
        &[],
    )?;
    block.way(Pool::Average, &[("branch_pool", 192, ONE, 1)], &[])
}

fn halved_to_coarse(block: &mut Block) -> Result<()> {
    block.way(Pool::None, &[("branch3x3_1", 192, ONE, 1), ("branch3x3_2", 320, THREE, 2)], &[])?;
    block.way(
        Pool::None,
        &[
            ("branch7x7x3_1", 192, ONE, 1),
            ("branch7x7x3_2", 192, [1, 7], 1),
            ("branch7x7x3_3", 192, [7, 1], 1),
            ("branch7x7x3_4", 192, THREE, 2),
        ],
        &[],
    )?;
    block.way(Pool::Largest(2), &[], &[])
}

fn coarse(block: &mut Block, pool: Pool) -> Result<()> {
    let (row, column) = ([1, 3], [3, 1]);
    block.way(Pool::None, &[("branch1x1", 320, ONE, 1)], &[])?;
    block.way(
        Pool::None,
        &[("branch3x3_1", 384, ONE, 1)],
        &[("branch3x3_2a", 384, row, 1), ("branch3x3_2b", 384, column, 1)],
    )?;
    block.way(
        Pool::None,
        &[("branch3x3dbl_1", 448, ONE, 1), ("branch3x3dbl_2", 384, THREE, 1)],
        &[("branch3x3dbl_3a", 384, row, 1), ("branch3x3dbl_3b", 384, column, 1)],
    )?;
    block.way(pool, &[("branch_pool", 192, ONE, 1)], &[])
}
