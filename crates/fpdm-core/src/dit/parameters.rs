//! Every tensor of a network by name: one list for counting, checking, initialising and loading.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::config::{Architecture, Config, Labels};
use crate::{Error, Result};

/// How a fresh parameter is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zero,
    /// Uniform in `±sqrt(6 / (fan_in + fan_out))` (Glorot and Bengio 2010, equation 16).
    Xavier {
        /// Inputs of the matrix.
        fan_in: usize,
        /// Outputs of the matrix.
        fan_out: usize,
    },
    /// Normal around 0 with this standard deviation.
    Normal(f64),
}

/// A trainable tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// The name in the published checkpoints.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
}

impl Parameter {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

struct List(Vec<Parameter>);

impl List {
    fn push(&mut self, name: String, shape: &[usize], init: Init) {
        self.0.push(Parameter { name, shape: shape.to_vec(), init });
    }

    fn linear(&mut self, name: &str, input: usize, output: usize) {
        self.linear_with(name, input, output, Init::Xavier { fan_in: input, fan_out: output });
    }

    fn linear_with(&mut self, name: &str, input: usize, output: usize, init: Init) {
        self.push(format!("{name}.weight"), &[output, input], init);
        self.push(format!("{name}.bias"), &[output], Init::Zero);
    }

    fn conditioner(&mut self, prefix: &str, config: &Config) {
        let d = config.hidden_size;
        let normal = Init::Normal(0.02);
        self.linear_with(&format!("{prefix}t_embedder.mlp.0"), 256, d, normal);
        self.linear_with(&format!("{prefix}t_embedder.mlp.2"), d, d, normal);
        match config.labels {
            Labels::None => {}
            Labels::Classes(n) => {
                self.push(format!("{prefix}y_embedder.embedding_table.weight"), &[n + 1, d], normal);
            }
            Labels::Vector(n) => {
                self.linear_with(&format!("{prefix}y_embedder.mlp.0"), n, d, normal);
                self.linear_with(&format!("{prefix}y_embedder.mlp.2"), d, d, normal);
            }
        }
    }

    fn block(&mut self, name: &str, config: &Config) {
        let d = config.hidden_size;
        self.linear(&format!("{name}.attn.qkv"), d, 3 * d);
        self.linear(&format!("{name}.attn.proj"), d, d);
        self.linear(&format!("{name}.mlp.fc1"), d, config.mlp_hidden());
        self.linear(&format!("{name}.mlp.fc2"), config.mlp_hidden(), d);
        self.linear_with(&format!("{name}.adaLN_modulation.1"), d, 6 * d, Init::Zero);
    }
}

impl Config {
    /// The names of the implicit group's blocks: `block_fixed_point` as published, `blocks_fixed_point.N` for a group.
    pub fn implicit_block_names(&self) -> Vec<String> {
        match self.group {
            1 => vec!["block_fixed_point".to_owned()],
            n => (0..n).map(|i| format!("blocks_fixed_point.{i}")).collect(),
        }
    }

    /// Every trainable tensor, in the order of computation. The position embedding is no parameter: it is computed,
    /// or read where a checkpoint holds it.
    pub fn parameters(&self) -> Vec<Parameter> {
        let (c, p, d) = (self.in_channels, self.patch_size, self.hidden_size);
        let mut list = List(Vec::new());
        let patch = c * p * p;
        list.push("x_embedder.proj.weight".into(), &[d, c, p, p], Init::Xavier { fan_in: patch, fan_out: d });
        list.push("x_embedder.proj.bias".into(), &[d], Init::Zero);
        if !self.block_embedders {
            list.conditioner("", self);
        }
        match self.architecture {
            Architecture::Dit => {
                for i in 0..self.depth {
                    if self.block_embedders {
                        list.conditioner(&format!("blocks.{i}."), self);
                    }
                    list.block(&format!("blocks.{i}"), self);
                }
            }
            Architecture::Fpdm => {
                for i in 0..self.pre_depth {
                    list.block(&format!("blocks_pre.{i}"), self);
                }
                list.linear("block_pre_projection", d, d);
                list.linear("block_fixed_point_projection_fc1", 2 * d, 2 * d);
                list.linear("block_fixed_point_projection_fc2", 2 * d, d);
                for name in self.implicit_block_names() {
                    list.block(&name, self);
                }
                for i in 0..self.post_depth {
                    list.block(&format!("blocks_post.{i}"), self);
                }
            }
        }
        list.linear_with("final_layer.linear", d, p * p * self.out_channels(), Init::Zero);
        list.linear_with("final_layer.adaLN_modulation.1", d, 2 * d, Init::Zero);
        list.0
    }

    /// Trainable elements.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(Parameter::len).sum()
    }
}

/// The tensors of a network, read once and all problems reported together.
pub(super) struct Weights(BTreeMap<String, Tensor>);

impl Weights {
    pub(super) fn read(config: &Config, vb: &VarBuilder) -> Result<Self> {
        config.check()?;
        let mut tensors = BTreeMap::new();
        let mut problems = Vec::new();
        for p in config.parameters() {
            let hint = match p.init {
                Init::Zero => candle_nn::Init::Const(0.0),
                Init::Normal(stdev) => candle_nn::Init::Randn { mean: 0.0, stdev },
                Init::Xavier { fan_in, fan_out } => {
                    let up = (6.0 / (fan_in + fan_out) as f64).sqrt();
                    candle_nn::Init::Uniform { lo: -up, up }
                }
            };
            match vb.get_with_hints(p.shape.as_slice(), &p.name, hint) {
                Ok(tensor) => {
                    tensors.insert(p.name, tensor);
                }
                Err(e) => problems.push(format!("{} {:?}: {}", p.name, p.shape, first_line(&e))),
            }
        }
        if vb.contains_tensor("pos_embed") {
            match vb.get((1, config.tokens(), config.hidden_size), "pos_embed") {
                Ok(tensor) => {
                    tensors.insert("pos_embed".into(), tensor.detach());
                }
                Err(e) => problems
                    .push(format!("pos_embed: {}; check input_size, patch_size and hidden_size", first_line(&e))),
            }
        }
        if problems.is_empty() { Ok(Self(tensors)) } else { Err(Error::Weights { origin: "weights".into(), problems }) }
    }

    pub(super) fn get(&self, name: &str) -> Tensor {
        self.0[name].clone()
    }

    pub(super) fn find(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).cloned()
    }
}

/// Candle appends a backtrace if the environment asks for one: no place for it in a list of names.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
