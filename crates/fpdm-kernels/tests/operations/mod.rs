//! Every operation with its composed definition and random arguments, for all tests to walk.
#![allow(dead_code)] // each test binary uses its part

use candle_core::{DType, Device, Result, Tensor, Var};
use fpdm_kernels::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// How an argument lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Memory {
    Dense,
    /// Columns of a wider tensor.
    Columns,
    /// The first two of three dimensions, or both of two, exchanged.
    Swapped,
}

pub(crate) type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Names and shapes of the arguments.
    pub(crate) arguments: Vec<(&'static str, Vec<usize>)>,
    pub(crate) fused: Function,
    pub(crate) composed: Function,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) inner: usize,
    pub(crate) outer: usize,
    pub(crate) heads: usize,
    pub(crate) size: usize,
}

pub(crate) fn operations(s: Sizes) -> Vec<Operation> {
    let Sizes { batch: b, tokens: t, inner: i, outer: o, heads, size } = s;
    macro_rules! op {
        ($name:ident, [$($arg:ident: $shape:expr),*], |$a:ident| ($($call:expr),*)) => {
            Operation {
                name: stringify!($name),
                arguments: vec![$((stringify!($arg), $shape.to_vec())),*],
                fused: Box::new(move |$a| $name($($call),*)),
                composed: Box::new(move |$a| composed::$name($($call),*)),
            }
        };
    }
    vec![
        op!(linear, [x: [b, t, i], w: [o, i], b: [o]], |a| (&a[0], &a[1], Some(&a[2]))),
        op!(linear, [x: [t, i], w: [o, i]], |a| (&a[0], &a[1], None)),
        op!(linear_gelu, [x: [b, t, i], w: [o, i], b: [o]], |a| (&a[0], &a[1], Some(&a[2]))),
        op!(linear_gelu, [x: [b, t, i], w: [o, i]], |a| (&a[0], &a[1], None)),
        op!(linear_add_gelu, [x: [b, t, i], w: [o, i], r: [b, t, o]], |a| (&a[0], &a[1], &a[2])),
        op!(
            linear_gate_residual,
            [x: [b, t, i], w: [o, i], b: [o], residual: [b, t, o], gate: [b, o]],
            |a| (&a[0], &a[1], &a[2], &a[3], &a[4])
        ),
        // Where a row hardly varies the norm multiplies the rounding of the sum before it by 1 / sqrt(eps): a large eps keeps
        // that apart from mistakes. The norm by itself is tested with a small one, and `equivalence.rs` holds the joined
        // operation to the separate ones bit by bit.
        Operation {
            name: "linear_gate_residual_norm",
            arguments: vec![
                ("x", vec![b, t, i]),
                ("w", vec![o, i]),
                ("b", vec![o]),
                ("residual", vec![b, t, o]),
                ("gate", vec![b, o]),
                ("shift", vec![b, o]),
                ("scale", vec![b, o]),
            ],
            fused: Box::new(|a| {
                both(linear_gate_residual_norm((&a[0], &a[1], &a[2]), (&a[3], &a[4]), (&a[5], &a[6]), 0.1)?)
            }),
            composed: Box::new(|a| {
                both(composed::linear_gate_residual_norm((&a[0], &a[1], &a[2]), (&a[3], &a[4]), (&a[5], &a[6]), 0.1)?)
            }),
        },
        op!(attention, [qkv: [b, t, 3 * heads * size]], |a| (&a[0], heads)),
        op!(layer_norm_modulate, [x: [b, t, i], shift: [b, i], scale: [b, i]], |a| (&a[0], &a[1], &a[2], 1e-3)),
        op!(gate_residual, [x: [b, t, i], gate: [b, i], y: [b, t, i]], |a| (&a[0], &a[1], &a[2])),
        op!(gelu, [x: [b, t, i]], |a| (&a[0])),
        op!(silu, [x: [b, t, i]], |a| (&a[0])),
        op!(softmax, [x: [b, t, i]], |a| (&a[0])),
        op!(bias, [x: [b, t, i], b: [i]], |a| (&a[0], &a[1])),
    ]
}

/// Both results of an operation as one.
fn both((first, second): (Tensor, Tensor)) -> Result<Tensor> {
    Tensor::cat(&[first, second], 2)
}

/// Normal numbers, the same for the same seed.
pub(crate) fn normal(shape: &[usize], seed: u64, scale: f64) -> Result<Tensor> {
    use rand::Rng;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // A sum of uniform numbers is normal enough.
    let data: Vec<f64> =
        (0..shape.iter().product()).map(|_| scale * (0..6).map(|_| rng.random_range(-0.7..0.7)).sum::<f64>()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// An argument: the variable that owns the numbers, and the view of it that is passed.
pub(crate) struct Argument {
    pub(crate) var: Var,
    pub(crate) memory: Memory,
    shape: Vec<usize>,
}

impl Argument {
    pub(crate) fn new(shape: &[usize], memory: Memory, dtype: DType, seed: u64) -> Result<Self> {
        let memory = if shape.len() == 1 { Memory::Dense } else { memory };
        let mut stored = shape.to_vec();
        match memory {
            Memory::Dense => (),
            Memory::Columns => *stored.last_mut().unwrap() += 3,
            Memory::Swapped => stored.swap(0, 1),
        }
        let scale = if shape.len() == 2 { (shape[1] as f64).powf(-0.5) } else { 1. };
        let var = Var::from_tensor(&normal(&stored, seed, scale)?.to_dtype(dtype)?)?;
        Ok(Self { var, memory, shape: shape.to_vec() })
    }

    pub(crate) fn view(&self) -> Result<Tensor> {
        self.view_of(self.var.as_tensor())
    }

    pub(crate) fn view_of(&self, stored: &Tensor) -> Result<Tensor> {
        match self.memory {
            Memory::Dense => Ok(stored.clone()),
            Memory::Columns => stored.narrow(self.shape.len() - 1, 2, self.shape[self.shape.len() - 1]),
            Memory::Swapped => stored.transpose(0, 1),
        }
    }
}

pub(crate) fn arguments(op: &Operation, memory: &[Memory], dtype: DType, seed: u64) -> Result<Vec<Argument>> {
    let build = |(i, (_, shape)): (usize, &(&str, Vec<usize>))| {
        Argument::new(shape, memory[i % memory.len()], dtype, seed + i as u64)
    };
    op.arguments.iter().enumerate().map(build).collect()
}

/// A scalar whose gradients are those of the operation, weighted differently everywhere.
pub(crate) fn loss(y: &Tensor) -> Result<Tensor> {
    (y * normal(y.dims(), 99, 1.)?.to_dtype(y.dtype())?)?.sum_all()
}

/// The largest difference, relative to the largest number of either but at least to one.
pub(crate) fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    if a.elem_count() == 0 {
        return Ok(0.);
    }
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let most = |t: &Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>();
    let bad = (a.sub(&b)?.flatten_all()?.to_vec1::<f64>()?).iter().any(|x| x.is_nan());
    Ok(if bad { f64::INFINITY } else { most(&a.sub(&b)?)? / most(&b)?.max(1.) })
}
