//! Where a run's samples come from, from the command line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use clap::{Args, ValueEnum};
use fpdm_core::Normalisation;
use fpdm_train::{
    DataSource, Encoded, ImageFolder, ImageSource, LatentIndex, LatentShards, Normalised, NpyFolders, Part, Pixels,
    TarShards, measure_latents,
};
use fpdm_vae::image::{DEFAULT_MAX_PIXELS, center_crop, decode, to_tensor};

/// Samples over which latents that are encoded on the fly are measured, at most.
const MEASURED: usize = 8192;

/// Where samples come from.
#[derive(Args, Debug)]
pub(crate) struct DataOptions {
    /// A folder that `encode_dataset` has written; a folder of images (its folders are the classes) or tar archives,
    /// encoded on the fly; or, with --labels, a folder of published `.npy` features.
    #[arg(required = true)]
    pub data: Vec<PathBuf>,
    /// The folder of `.npy` labels that belong to the features, by name.
    #[arg(long)]
    pub labels: Option<PathBuf>,
    /// Classes of `.npy` labels.
    #[arg(long, default_value_t = 1000)]
    pub classes: usize,
    /// Side of the square that is cut from the middle of each image, in pixels.
    #[arg(long, default_value_t = 256)]
    pub side: usize,
    /// Images to train on, counted from the first; all if absent.
    #[arg(long)]
    pub take: Option<usize>,
    /// The share of images that may be broken; they are left out and listed at the end.
    #[arg(long, default_value_t = 0.)]
    pub skip: f64,
    /// What images are encoded with and samples decoded: `pixels`, a Hub repository, a folder or a file. Where absent, what
    /// the latents were encoded with, or `madebyollin/taesd`.
    #[arg(long)]
    pub codec: Option<String>,
    /// none, std or channels: what latents are divided by, measured over the data.
    #[arg(long, default_value = "none")]
    pub normalise: Normalise,
    /// Reads encoded latents from the disk batch by batch instead of keeping them all in memory.
    #[arg(long)]
    pub from_disk: bool,
}

impl DataOptions {
    /// `--codec`, or what the data say.
    pub(crate) fn codec(&self) -> Result<String> {
        if let Some(codec) = &self.codec {
            return Ok(codec.clone());
        }
        let index = match self.data.as_slice() {
            [folder] if folder.is_dir() => LatentIndex::read(folder)?,
            _ => None,
        };
        // `encode_dataset` writes `CODEC at SIDE`.
        let named = index.map(|index| match index.codec.rsplit_once(" at ") {
            Some((codec, _)) => codec.to_owned(),
            None => index.codec,
        });
        Ok(named.unwrap_or_else(|| "madebyollin/taesd".to_owned()))
    }
}

/// What latents are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Normalise {
    /// Nothing: they are as the codec has them.
    None,
    /// The deviation of all.
    Std,
    /// The deviation of each channel, after its mean has been subtracted.
    Channels,
}

/// A source and what a network must know of it.
pub(crate) struct Data {
    /// Batches.
    pub source: Arc<dyn DataSource>,
    /// The shape `(C, H, W)` of a latent.
    pub shape: Vec<usize>,
    /// Classes.
    pub classes: usize,
    /// Samples.
    pub samples: usize,
    /// What they were made of.
    pub name: String,
    /// What was done to the codec's latents, if anything.
    pub normalisation: Option<Normalisation>,
    /// The images of the source, if it has images.
    images: Option<Arc<Images>>,
}

type Decoder = Box<dyn Fn(&[u8]) -> fpdm_core::Result<Tensor> + Send + Sync>;
type Images = Pixels<Box<dyn ImageSource>, Decoder>;

impl Data {
    /// Opens what the options name. Codecs compute on `device`; everything else is on the CPU.
    pub(crate) fn open(options: &DataOptions, seed: u64, device: &Device) -> Result<Self> {
        for path in options.data.iter().chain(&options.labels) {
            let help = "there is no such file or folder; `encode_dataset` makes latents of images";
            ensure!(path.exists(), "{}: {help}", path.display());
        }
        let first = options.data[0].as_path();
        if let Some(labels) = &options.labels {
            ensure!(options.data.len() == 1, "--labels belong to one folder of features");
            return Self::features(options, first, labels, seed);
        }
        if options.data.len() == 1 && first.is_dir() && LatentIndex::read(first)?.is_some() {
            return Self::latents(options, first, seed);
        }
        Self::images(options, seed, device)
    }

    fn latents(options: &DataOptions, folder: &Path, seed: u64) -> Result<Self> {
        let mut shards = LatentShards::open(folder, 0, &Device::Cpu)?;
        if options.from_disk {
            shards.verify()?;
        } else {
            shards = shards.into_memory()?;
        }
        let (shape, classes, samples) = (shards.shape(), shards.index().classes.len(), shards.len());
        // Two epochs, so that about as many samples are upright as mirrored; of seed 0, whatever the run's.
        let by = measure(options, &shards, 2 * samples)?;
        let name = file_name(Path::new(&shards.index().source));
        Ok(Self { name, ..Self::normalised(shards.shuffled(seed)?, by, (shape, classes, samples))? })
    }

    fn features(options: &DataOptions, features: &Path, labels: &Path, seed: u64) -> Result<Self> {
        let data = NpyFolders::open(features, labels, seed, &Device::Cpu)?;
        let (shape, samples) = (data.shape()?, data.len());
        let by = measure(options, &data, samples)?;
        let name = file_name(features);
        Ok(Self { name, ..Self::normalised(data, by, (shape, options.classes, samples))? })
    }

    fn images(options: &DataOptions, seed: u64, device: &Device) -> Result<Self> {
        let images: Box<dyn ImageSource> = match options.data.as_slice() {
            [folder] if folder.is_dir() => Box::new(ImageFolder::open(folder)?),
            archives => Box::new(TarShards::open(archives)?),
        };
        let images: Box<dyn ImageSource> = match options.take {
            Some(take) => Box::new(Part::new(images, 0..take)?),
            None => images,
        };
        let (classes, samples, side) = (images.classes().len(), images.len(), options.side);
        let decoder: Decoder = Box::new(move |bytes: &[u8]| pixels(bytes, side).map_err(fpdm_core::Error::other));
        let images = Arc::new(Pixels::new(images, decoder, seed, device)?.skipping(options.skip)?);
        let codec = fpdm_vae::open(&options.codec()?, DType::F32, device).with_context(|| "--codec".to_owned())?;
        let data = Encoded::new(images.clone(), codec);
        let shape = data.batch(0, 1)?.moments.mean.dims()[1..].to_vec();
        let by = measure(options, &data, samples.min(MEASURED))?;
        let name = options.data.iter().map(|path| file_name(path)).collect::<Vec<_>>().join(" ");
        Ok(Self { name, images: Some(images), ..Self::normalised(data, by, (shape, classes, samples))? })
    }

    fn normalised(
        data: impl DataSource + 'static,
        normalisation: Option<Normalisation>,
        (shape, classes, samples): (Vec<usize>, usize, usize),
    ) -> Result<Self> {
        let source: Arc<dyn DataSource> = match &normalisation {
            Some(by) => Arc::new(Normalised::new(data, by.clone())?),
            None => Arc::new(data),
        };
        Ok(Self { source, shape, classes, samples, normalisation, name: String::new(), images: None })
    }

    /// Says which images were broken.
    pub(crate) fn report_skipped(&self) {
        for (name, why) in self.images.iter().flat_map(|images| images.skipped()) {
            eprintln!("left out: {name}: {why}");
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn measure(options: &DataOptions, data: &dyn DataSource, samples: usize) -> Result<Option<Normalisation>> {
    Ok(match options.normalise {
        Normalise::None => None,
        how => Some(measure_latents(data, samples, how == Normalise::Channels)?),
    })
}

/// `(3, side, side)` in [-1, 1].
fn pixels(bytes: &[u8], side: usize) -> fpdm_vae::Result<Tensor> {
    let picture = center_crop(&decode("image", bytes, DEFAULT_MAX_PIXELS)?, side)?;
    let image = to_tensor(&picture, DType::F32, &Device::Cpu)?;
    Ok(if image.rank() == 4 { image.squeeze(0)? } else { image })
}
