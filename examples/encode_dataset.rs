//! Encodes a set of images into latent shards: each image and its mirror image, once.
//!
//! ```sh
//! cargo run --release --example encode_dataset -- FOLDER_OR_TAR... --codec madebyollin/taesd --out latents
//! ```
//!
//! Stopped and started again with the same arguments it goes on where it stopped. Images are decoded on all cores.

mod device;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use fpdm_core::Error;
use fpdm_train::{Ahead, ImageFolder, ImageSource, LatentIndex, LatentShard, Part, TarShards};
use fpdm_vae::image::{DEFAULT_MAX_PIXELS, center_crop, decode, to_tensor};
use fpdm_vae::{LatentCodec, Moments};
use indicatif::{ProgressBar, ProgressStyle};

/// Encodes images into latent shards.
#[derive(Parser, Debug)]
struct Arguments {
    /// One folder (its folders are the classes), or tar archives (WebDataset names, or folders as classes).
    #[arg(required = true)]
    source: Vec<PathBuf>,
    /// `pixels`, a Hub repository, a folder or a file.
    #[arg(long, default_value = "madebyollin/taesd")]
    codec: String,
    /// The folder that shards and index go to.
    #[arg(long)]
    out: PathBuf,
    /// Side of the square that is cut from the middle of each image, in pixels.
    #[arg(long, default_value_t = 256)]
    side: usize,
    /// Images of the source to encode, counted from its first; all if absent.
    #[arg(long)]
    take: Option<usize>,
    /// Images in one pass through the codec.
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// Images in one shard: what an interruption can lose.
    #[arg(long, default_value_t = 1024)]
    shard_size: usize,
    /// The share of images that may be broken; they are left out and listed in the index.
    #[arg(long, default_value_t = 0.)]
    skip: f64,
    /// Stop after so many shards.
    #[arg(long)]
    shards: Option<usize>,
    /// auto, cpu, cuda or metal: where the codec computes.
    #[arg(long, default_value = "auto")]
    device: String,
}

fn main() -> Result<()> {
    let args = Arguments::parse();
    ensure!(args.batch_size > 0 && args.shard_size > 0, "--batch-size and --shard-size must be 1 or more");
    ensure!((0. ..=1.).contains(&args.skip), "--skip: {} is no share; use 0 to 1", args.skip);
    let source: Arc<dyn ImageSource> = images(&args)?.into();
    let device = device::open(&args.device)?;
    let codec = fpdm_vae::open(&args.codec, DType::F32, &device)?;
    let mut index = start(&args, &*source)?;
    let bar = ProgressBar::new(source.len() as u64).with_position(index.done() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} images {per_sec} {eta} left")?);
    let decoded = decoded(&args, &source)?;
    let encoding = Encoding { args: &args, source: &*source, decoded, codec: &*codec, device: &device, bar: &bar };
    let mut written = 0;
    while index.done() < source.len() && args.shards.is_none_or(|most| written < most) {
        let end = (index.done() + args.shard_size).min(source.len());
        let shard = encoding.shard(index.done()..end, &mut index)?;
        index.append(&args.out, &shard, end)?;
        written += 1;
    }
    bar.finish();
    let skipped = index.skipped.len();
    println!("{} of {} images in {} shards, {skipped} skipped", index.samples(), index.images, index.shards.len());
    Ok(())
}

fn images(args: &Arguments) -> Result<Box<dyn ImageSource>> {
    let source: Box<dyn ImageSource> = match args.source.as_slice() {
        [folder] if folder.is_dir() => Box::new(ImageFolder::open(folder)?),
        archives => Box::new(TarShards::open(archives)?),
    };
    Ok(match args.take {
        Some(take) => Box::new(Part::new(source, 0..take)?),
        None => source,
    })
}

/// The index of an earlier run with the same arguments, or a new one.
fn start(args: &Arguments, source: &dyn ImageSource) -> Result<LatentIndex> {
    let names: Vec<_> = args.source.iter().map(|path| file_name(path)).collect();
    let fresh = LatentIndex {
        codec: format!("{} at {}", args.codec, args.side),
        source: names.join(" "),
        images: source.len(),
        classes: source.classes().to_vec(),
        shards: Vec::new(),
        skipped: Default::default(),
    };
    let Some(found) = LatentIndex::read(&args.out)? else { return Ok(fresh) };
    let told = |index: &LatentIndex| (index.codec.clone(), index.source.clone(), index.images, index.classes.clone());
    if told(&found) != told(&fresh) {
        bail!("{} holds {:?}, not {:?}; use another folder", args.out.display(), told(&found), told(&fresh));
    }
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// An image, or why it cannot be decoded.
type Decoded = fpdm_core::Result<Tensor>;

/// Images of the source one after the other, read, decoded and cut on threads ahead of the codec. A file that cannot be
/// read is an error of its own, not a broken image.
fn decoded(args: &Arguments, source: &Arc<dyn ImageSource>) -> Result<Ahead<Decoded>> {
    let (source, side) = (source.clone(), args.side);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Ahead::new(threads, threads.max(args.batch_size) * 2, move |i| {
        let i = i as usize;
        if i >= source.len() {
            return Err(Error::config("data", format!("there is no image {i}")));
        }
        Ok(pixels(&source.entry(i).0, &source.read(i)?, side))
    })?)
}

/// What all shards have in common.
struct Encoding<'a> {
    args: &'a Arguments,
    source: &'a dyn ImageSource,
    decoded: Ahead<Decoded>,
    codec: &'a dyn LatentCodec,
    device: &'a Device,
    bar: &'a ProgressBar,
}

impl Encoding<'_> {
    /// The shard of the images in `range`; the broken ones go to the index.
    fn shard(&self, range: std::ops::Range<usize>, index: &mut LatentIndex) -> Result<LatentShard> {
        let (mut upright, mut flipped, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        let mut pending = Vec::new();
        for i in range.clone() {
            let (name, class) = self.source.entry(i);
            match self.decoded.get(i as u64)? {
                Ok(image) => {
                    pending.push(image);
                    classes.push(class);
                }
                Err(error) => {
                    index.skipped.insert(name.clone(), error.to_string());
                    let most = (self.args.skip * self.source.len() as f64) as usize;
                    if index.skipped.len() > most {
                        return Err(error)
                            .context(format!("{name}; --skip {} allows {most} broken images", self.args.skip));
                    }
                }
            }
            if pending.len() == self.args.batch_size || (i + 1 == range.end && !pending.is_empty()) {
                let batch = Tensor::stack(&pending, 0)?.to_device(self.device)?;
                upright.push(self.codec.encode(&batch)?);
                flipped.push(self.codec.encode(&batch.flip(&[3])?)?);
                pending.clear();
            }
            self.bar.inc(1);
        }
        ensure!(!classes.is_empty(), "images {range:?} are all broken; use a larger --shard-size or repair them");
        Ok(LatentShard { upright: join(&upright)?, flipped: join(&flipped)?, classes })
    }
}

/// `(3, side, side)` in [-1, 1].
fn pixels(name: &str, bytes: &[u8], side: usize) -> fpdm_vae::Result<Tensor> {
    let picture = center_crop(&decode(name, bytes, DEFAULT_MAX_PIXELS)?, side)?;
    let image = to_tensor(&picture, DType::F32, &Device::Cpu)?;
    Ok(if image.rank() == 4 { image.squeeze(0)? } else { image })
}

fn join(parts: &[Moments]) -> Result<Moments> {
    let join = |of: fn(&Moments) -> &Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
    Ok(Moments { mean: join(|m| &m.mean)?, std: join(|m| &m.std)? })
}
