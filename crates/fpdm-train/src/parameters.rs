//! Named variables as one flat buffer.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use fpdm_core::{Error, Result};

/// The trainable variables of a network in sorted-name order, and where each lies in a flat f32 buffer.
///
/// The order is a function of the names alone, so that a buffer means the same in every process: what is stored can be
/// loaded, and gradients of several processes can be added.
#[derive(Clone, Debug)]
pub struct Parameters {
    entries: Vec<Entry>,
    len: usize,
    device: Device,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    var: Var,
    offset: usize,
}

impl Parameters {
    /// All variables of `variables`.
    ///
    /// # Errors
    /// [`Error::Config`] where there are none.
    pub fn new(variables: &VarMap) -> Result<Self> {
        let named: BTreeMap<String, Var> = {
            let data = variables.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            data.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
        };
        let device = match named.values().next() {
            Some(var) => var.device().clone(),
            None => return Err(Error::config("variables", "none; build the network from this map first")),
        };
        let mut len = 0;
        let mut entries = Vec::with_capacity(named.len());
        for (name, var) in named {
            let offset = len;
            len += var.elem_count();
            entries.push(Entry { name, var, offset });
        }
        Ok(Self { entries, len, device })
    }

    /// Elements of the flat buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The dtype that the network works in: that of the first variable by name.
    pub fn dtype(&self) -> DType {
        self.entries.first().map_or(DType::F32, |entry| entry.var.dtype())
    }

    /// Where the variables are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Names and shapes, sorted by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.entries.iter().map(|e| (e.name.clone(), e.var.dims().to_vec())).collect()
    }

    /// A copy of all values, `(len)` in f32.
    pub fn gather(&self) -> Result<Tensor> {
        self.concat(|entry| Ok(Some(entry.var.as_detached_tensor())))
    }

    /// Writes a flat buffer into the variables, rounded to their dtype.
    pub fn scatter(&self, flat: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if self.device.is_cuda() {
            for entry in &self.entries {
                fpdm_kernels::cuda::copy_from(entry.var.as_tensor(), flat, entry.offset)?;
            }
            return Ok(());
        }
        for (entry, value) in self.entries.iter().zip(self.slices(flat)?) {
            entry.var.set(&value.to_dtype(entry.var.dtype())?)?;
        }
        Ok(())
    }

    /// The parts of a flat buffer by name, in f32, sharing its storage.
    pub fn named(&self, flat: &Tensor) -> Result<BTreeMap<String, Tensor>> {
        Ok(self.entries.iter().map(|e| e.name.clone()).zip(self.slices(flat)?).collect())
    }

    /// The flat buffer of tensors by name.
    ///
    /// # Errors
    /// [`Error::Weights`] with every name that is missing, has another shape, or is not a parameter.
    pub fn flatten(&self, tensors: &BTreeMap<String, Tensor>, origin: &str) -> Result<Tensor> {
        let mut problems: Vec<String> = tensors
            .keys()
            .filter(|name| self.entries.binary_search_by(|e| e.name.cmp(name)).is_err())
            .map(|name| format!("{name} is no parameter of this network"))
            .collect();
        for Entry { name, var, .. } in &self.entries {
            match tensors.get(name) {
                None => problems.push(format!("{name} is missing")),
                Some(t) if t.dims() != var.dims() => {
                    problems.push(format!("{name} is {:?} and should be {:?}", t.dims(), var.dims()));
                }
                Some(_) => {}
            }
        }
        if !problems.is_empty() {
            return Err(Error::Weights { origin: origin.into(), problems });
        }
        self.concat(|entry| Ok(tensors.get(&entry.name).map(Tensor::detach)))
    }

    fn slices(&self, flat: &Tensor) -> Result<Vec<Tensor>> {
        if flat.dims() != [self.len] {
            return Err(Error::shape("a flat buffer of the parameters", [self.len], flat.dims()));
        }
        let slice = |e: &Entry| Ok(flat.narrow(0, e.offset, e.var.elem_count())?.reshape(e.var.shape())?);
        self.entries.iter().map(slice).collect()
    }

    /// One f32 buffer of what `of` gives for each variable, zero where it gives nothing.
    fn concat(&self, of: impl Fn(&Entry) -> Result<Option<Tensor>>) -> Result<Tensor> {
        let part = |entry: &Entry| -> Result<Tensor> {
            Ok(match of(entry)? {
                Some(value) => value.to_dtype(DType::F32)?.to_device(&self.device)?.flatten_all()?,
                None => Tensor::zeros(entry.var.elem_count(), DType::F32, &self.device)?,
            })
        };
        let parts = self.entries.iter().map(part).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// Sums of gradients in f32, over backward passes and micro-batches.
#[derive(Debug)]
pub struct Gradients {
    parameters: Parameters,
    sums: BTreeMap<String, Tensor>,
    /// Where there are kernels for it, sums are made in the flat buffer itself.
    #[cfg(feature = "cuda")]
    flat: Option<Tensor>,
    /// The offsets in it that hold a sum already.
    #[cfg(feature = "cuda")]
    written: std::collections::BTreeSet<usize>,
}

impl Gradients {
    /// Zero for every parameter.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn new(parameters: &Parameters) -> Result<Self> {
        Ok(Self {
            parameters: parameters.clone(),
            sums: BTreeMap::new(),
            #[cfg(feature = "cuda")]
            flat: match parameters.device.is_cuda() {
                true => Some(Tensor::zeros(parameters.len, DType::F32, &parameters.device)?),
                false => None,
            },
            #[cfg(feature = "cuda")]
            written: Default::default(),
        })
    }

    /// Takes the gradients of the parameters out of `grads` and adds `scale` times them.
    pub fn add(&mut self, mut grads: GradStore, scale: f64) -> Result<()> {
        for Entry { name, var, offset } in &self.parameters.entries {
            let _ = offset;
            let Some(grad) = grads.remove(var) else { continue };
            #[cfg(feature = "cuda")]
            if let Some(flat) = &self.flat {
                let add = !self.written.insert(*offset);
                fpdm_kernels::cuda::add_into(flat, *offset, &grad.detach(), scale, add)?;
                continue;
            }
            // Candle tracks the gradients of variables; kept as they are they would hold all activations.
            let mut sum = grad.detach().to_dtype(DType::F32)?;
            if scale != 1. {
                sum = (sum * scale)?;
            }
            if let Some(before) = self.sums.get(name) {
                sum = (before + sum)?;
            }
            self.sums.insert(name.clone(), sum);
        }
        Ok(())
    }

    /// The sums so far as one buffer `(len)` in f32, zero where no gradient came: what data-parallel processes
    /// average.
    pub fn flat(&self) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(flat) = &self.flat {
            return Ok(flat.clone());
        }
        self.parameters.concat(|entry| Ok(self.sums.get(&entry.name).cloned()))
    }
}
