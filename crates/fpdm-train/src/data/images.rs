//! Sets of encoded images.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use fpdm_core::{Error, Moments, Result};

use super::{Batch, DataSource, Order};

/// The endings of files that count as images.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "bmp"];

/// A set of encoded images in a fixed order, each with a class.
pub trait ImageSource: Send + Sync {
    /// Images.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name and the class of an image, for `index` below [`ImageSource::len`].
    fn entry(&self, index: usize) -> (String, u32);

    /// The bytes of its file.
    fn read(&self, index: usize) -> Result<Vec<u8>>;

    /// The names of the classes.
    fn classes(&self) -> &[String];
}

pub(super) fn is_image(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// A folder of images in one folder a class; images in the folder itself, without folders, are of one class.
///
/// Classes and images are in the order of their names. Folders within a class's folder belong to the class.
pub struct ImageFolder {
    root: PathBuf,
    classes: Vec<String>,
    images: Vec<(PathBuf, u32)>,
}

impl ImageFolder {
    /// Lists `root`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] for a folder without images, or with images both in class folders and beside.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref().to_path_buf();
        let (mut folders, beside) = entries(&root)?;
        folders.retain(|folder| !folder.file_name().unwrap_or_default().to_string_lossy().starts_with('.'));
        let mut images = Vec::new();
        let mut classes = Vec::new();
        for folder in folders {
            let mut found = Vec::new();
            walk(&folder, &mut found)?;
            if found.is_empty() {
                continue;
            }
            let class = classes.len() as u32;
            classes.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
            images.extend(found.into_iter().map(|path| (path, class)));
        }
        match (images.is_empty(), beside.first()) {
            (false, Some(image)) => {
                let why = format!("{} is in no class's folder, others are; move it into one", image.display());
                return Err(Error::config("data", why));
            }
            (true, Some(_)) => {
                classes.push("all".into());
                images = beside.into_iter().map(|path| (path, 0)).collect();
            }
            (true, None) => return Err(empty(&root)),
            (false, None) => {}
        }
        Ok(Self { root, classes, images })
    }
}

impl ImageSource for ImageFolder {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn entry(&self, index: usize) -> (String, u32) {
        let (path, class) = &self.images[index];
        (path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned(), *class)
    }

    fn read(&self, index: usize) -> Result<Vec<u8>> {
        let path = &self.images[index].0;
        fs::read(path).map_err(|e| Error::io(path, e))
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }
}

pub(super) fn empty(at: &Path) -> Error {
    Error::config("data", format!("{} holds no images ({})", at.display(), ENDINGS.join(", ")))
}

/// Folders and images in a folder, each sorted.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut folders, mut images) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.is_dir() {
            folders.push(path);
        } else if is_image(&path.to_string_lossy()) {
            images.push(path);
        }
    }
    folders.sort();
    images.sort();
    Ok((folders, images))
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let (folders, images) = entries(folder)?;
    found.extend(images);
    folders.iter().try_for_each(|folder| walk(folder, found))
}

/// A run of another source's images, for example all but those held out.
pub struct Part<S> {
    source: S,
    range: Range<usize>,
}

impl<S: ImageSource> Part<S> {
    /// The images `range` of `source`.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty range or one beyond the source.
    pub fn new(source: S, range: Range<usize>) -> Result<Self> {
        if range.is_empty() || range.end > source.len() {
            return Err(Error::config("data", format!("{range:?} is no part of {} images", source.len())));
        }
        Ok(Self { source, range })
    }
}

impl<S: ImageSource> ImageSource for Part<S> {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn entry(&self, index: usize) -> (String, u32) {
        self.source.entry(self.range.start + index)
    }

    fn read(&self, index: usize) -> Result<Vec<u8>> {
        self.source.read(self.range.start + index)
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }
}

impl ImageSource for Box<dyn ImageSource> {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn entry(&self, index: usize) -> (String, u32) {
        (**self).entry(index)
    }

    fn read(&self, index: usize) -> Result<Vec<u8>> {
        (**self).read(index)
    }

    fn classes(&self) -> &[String] {
        (**self).classes()
    }
}

/// From the bytes of an image file to pixels `(3, H, W)` in [-1, 1].
pub trait ImageDecoder: Send + Sync {
    /// Decodes, crops and scales: all images come out in one size.
    fn decode(&self, bytes: &[u8]) -> Result<Tensor>;
}

impl<F: Fn(&[u8]) -> Result<Tensor> + Send + Sync> ImageDecoder for F {
    fn decode(&self, bytes: &[u8]) -> Result<Tensor> {
        self(bytes)
    }
}

/// Images as training samples whose latents are their pixels, half of them mirrored.
pub struct Pixels<S, D> {
    source: S,
    decoder: D,
    order: Order,
    device: Device,
    /// Images that may be broken.
    allowed: usize,
    /// Those that are, as far as they have come up.
    broken: Mutex<BTreeMap<usize, String>>,
}

impl<S: ImageSource, D: ImageDecoder> Pixels<S, D> {
    /// All images of `source`, shuffled by `seed`; batches are put on `device`.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty source.
    pub fn new(source: S, decoder: D, seed: u64, device: &Device) -> Result<Self> {
        let order = Order::new(source.len(), seed)?;
        Ok(Self { source, decoder, order, device: device.clone(), allowed: 0, broken: Mutex::default() })
    }

    /// Lets a share of the images be broken: missing, truncated, no images. The next whole one takes the place of each.
    ///
    /// Beyond the share, the batch that comes upon one image too many is an error with its name.
    ///
    /// # Errors
    /// [`Error::Config`] for a share outside [0, 1].
    pub fn skipping(mut self, share: f64) -> Result<Self> {
        if !(0. ..=1.).contains(&share) {
            return Err(Error::config("skip", format!("{share} is no share; use 0 to 1")));
        }
        self.allowed = (share * self.source.len() as f64) as usize;
        Ok(self)
    }

    /// The broken images that have come up so far, by name, and what is wrong with them.
    pub fn skipped(&self) -> BTreeMap<String, String> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.iter().map(|(index, why)| (self.source.entry(*index).0, why.clone())).collect()
    }

    /// Image `sample`, or the first whole one after it, and its class.
    fn image(&self, sample: usize) -> Result<(Tensor, u32)> {
        let len = self.source.len();
        for index in (sample..len).chain(0..sample) {
            if self.broken.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&index) {
                continue;
            }
            let (name, class) = self.source.entry(index);
            match self.source.read(index).and_then(|bytes| self.decoder.decode(&bytes)) {
                Ok(image) => return Ok((image, class)),
                Err(error) => self.skip(index, &name, &error)?,
            }
        }
        Err(Error::config("data", "not one image is whole"))
    }

    fn skip(&self, index: usize, name: &str, error: &Error) -> Result<()> {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.len() < self.allowed || broken.contains_key(&index) {
            broken.insert(index, error.to_string());
            return Ok(());
        }
        let why = match self.allowed {
            0 => format!("{name}: {error}; remove or repair it, or skip a share"),
            most => format!("{name}: {error}; {most} others are broken, and no more may be"),
        };
        Err(Error::config("data", why))
    }
}

impl<S: ImageSource, D: ImageDecoder> DataSource for Pixels<S, D> {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        let positions: Vec<u64> = (0..size as u64).map(|i| index * size as u64 + i).collect();
        let (mut images, mut classes) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for &position in &positions {
            let (image, class) = self.image(self.order.at(position))?;
            images.push(if self.order.coin(position) { image.flip(&[2])? } else { image });
            classes.push(class);
        }
        let mean = Tensor::stack(&images, 0)?.to_device(&self.device)?;
        let moments = Moments { std: mean.zeros_like()?, mean };
        Ok(Batch { moments, y: Tensor::new(classes, &self.device)?, positions })
    }
}
