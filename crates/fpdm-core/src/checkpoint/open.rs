//! A checkpoint, under our names.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::container::{Container, broken};
use super::layout::{Layout, Recipe, Recipes, detect};
use super::safetensors::{Buffered, Safetensors};
use super::torch::Torch;
use crate::hub::{Hub, Source};
use crate::{Error, Result};

/// Which weights of a training checkpoint. A file with one set of weights gives that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// The trained weights.
    Model,
    /// Their exponential moving average, which is what one samples from.
    #[default]
    Ema,
}

/// The tensors of a file, under the names of the published FPDM and DiT code. A clone shares the open file.
#[derive(Clone)]
pub struct Checkpoint {
    origin: Arc<str>,
    layout: Layout,
    container: Arc<dyn Container>,
    recipes: Arc<Recipes>,
    shapes: Arc<BTreeMap<String, Vec<usize>>>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("origin", &self.origin)
            .field("layout", &self.layout)
            .field("tensors", &self.shapes.len())
            .finish()
    }
}

impl Checkpoint {
    /// Opens a safetensors file, an index of shards, a `torch.save` archive, or a folder with one of them.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Weights`] that says what the file is, what is wrong with it and where.
    pub fn open(path: impl AsRef<Path>, which: Which) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(Error::io(path, std::io::ErrorKind::NotFound.into()));
        }
        let source = match path.is_dir() {
            true => Source::Folder(path.to_path_buf()),
            false => Source::File(path.to_path_buf()),
        };
        // A local source asks no client.
        let nobody = Hub { offline: true, ..Hub::new("") };
        Self::from_files(&source.locate(&nobody, &mut |_| {})?.weights, which)
    }

    /// Opens one weight file, or several shards in safetensors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_files<P: AsRef<Path>>(paths: &[P], which: Which) -> Result<Self> {
        Self::from_files_below(paths, which, "")
    }

    /// As [`Checkpoint::from_files`], of a file that holds other things too: only names that start with `prefix`
    /// count, and lose it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_files_below<P: AsRef<Path>>(paths: &[P], which: Which, prefix: &str) -> Result<Self> {
        let Some(first) = paths.first().map(AsRef::as_ref) else {
            return Err(broken("weights", "no file was given"));
        };
        let container = container(first, paths, which)?;
        Self::new(first.display().to_string(), container, prefix)
    }

    /// Opens the bytes of one safetensors file, which are kept. `origin` is for messages.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use fpdm_core::checkpoint::Checkpoint;
    ///
    /// # use fpdm_core::dit::{Config, Size, init};
    /// # let small = Config { hidden_size: 16, num_heads: 2, ..Config::fpdm(Size::S, 2) };
    /// # let path = std::env::temp_dir().join(format!("fpdm-{}.safetensors", std::process::id()));
    /// # fpdm_core::params::save(&init(&small, 0, DType::F32, &Device::Cpu)?, &path)?;
    /// # let bytes = std::fs::read(&path).expect("just written");
    /// # std::fs::remove_file(&path).ok();
    /// // include_bytes!("model.safetensors"), say
    /// let weights = Checkpoint::from_bytes("the default weights", bytes)?;
    /// weights.check_network(&small)?;
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Weights`] that says what is wrong with them.
    pub fn from_bytes(origin: &str, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        Self::new(origin.to_owned(), Arc::new(Buffered::open(origin, bytes)?), "")
    }

    fn new(origin: String, container: Arc<dyn Container>, prefix: &str) -> Result<Self> {
        let (layout, recipes) = detect(&origin, &*container, prefix)?;
        let (mut shapes, mut problems) = (BTreeMap::new(), Vec::new());
        for (name, recipe) in &recipes {
            match recipe.shape(container.shapes()) {
                Ok(shape) => drop(shapes.insert(name.clone(), shape)),
                Err(why) => problems.push(why),
            }
        }
        if !problems.is_empty() {
            return Err(Error::Weights { origin, problems });
        }
        Ok(Self { origin: origin.into(), layout, container, recipes: recipes.into(), shapes: shapes.into() })
    }

    /// The file, or the first of the shards.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whose names the file uses; [`Checkpoint::names`] are ours in any case.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Our names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shapes.keys().map(String::as_str)
    }

    /// Our names with their shapes.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// The tensor of our `name`, as `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is none, or the file is damaged.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        // Cast first: the narrower one travels.
        Ok(self.read(name)?.to_dtype(dtype)?.to_device(device)?)
    }

    /// As stored, on the CPU.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor> {
        match self.recipes.get(name) {
            Some(Recipe::Whole(stored)) => self.container.read(stored),
            Some(Recipe::Rows(parts)) => {
                let parts: Vec<Tensor> = parts.iter().map(|part| self.container.read(part)).collect::<Result<_>>()?;
                Ok(Tensor::cat(&parts, 0)?)
            }
            None => Err(broken(&self.origin, format!("{name} is missing"))),
        }
    }

    /// A builder over our names. Tensors are read and cast when they are asked for, and stay on disk until then.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }
}

impl SimpleBackend for Checkpoint {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        if let Some(got) = self.shapes.get(name)
            && got != shape.dims()
        {
            let msg = format!("{}: {name}", self.origin);
            let got = Shape::from_dims(got);
            return Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got });
        }
        self.get_unchecked(name, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, dtype, device).map_err(candle_core::Error::wrap)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }
}

pub(super) fn container<P: AsRef<Path>>(first: &Path, paths: &[P], which: Which) -> Result<Arc<dyn Container>> {
    match (kind(first)?, paths.len()) {
        (Kind::Safetensors, _) => Ok(Arc::new(Safetensors::open(paths)?)),
        (Kind::Torch, 1) => Ok(Arc::new(Torch::open(first, which)?)),
        (Kind::Torch, n) => Err(broken(first.display(), format!("one of {n} files, but .pt comes in one; convert it"))),
    }
}

enum Kind {
    Safetensors,
    Torch,
}

/// By content: names of files say little.
fn kind(path: &Path) -> Result<Kind> {
    let mut head = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(16).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    match head.as_slice() {
        [b'P', b'K', 3, 4, ..] => Ok(Kind::Torch),
        // A safetensors header of this length would have no brace after it.
        [0x80, 2..=5, rest @ ..] if rest.get(6) != Some(&b'{') => Err(broken(
            path.display(),
            "a pickle without an archive, as torch.save wrote before version 1.6; load and save it with a newer torch",
        )),
        _ => Ok(Kind::Safetensors),
    }
}
