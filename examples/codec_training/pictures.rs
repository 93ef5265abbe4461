//! Batches of random parts of images, read ahead by threads; and the images that are held out.

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use fpdm_core::rng::{Stream, stream};
use fpdm_train::{ImageFolder, ImageSource, Order, Part, TarShards};
use fpdm_vae::image::{DEFAULT_MAX_PIXELS, Picture, center_crop, decode, to_tensor};
use rand::Rng;

use super::options::Options;

/// The images to train on and those held out.
pub(crate) struct Images {
    train: Arc<Squares>,
    held_out: Part<Box<dyn ImageSource>>,
    side: usize,
}

impl Images {
    /// Opens the data; the first `kept` images to train on stay in memory once they are decoded.
    pub(crate) fn open(options: &Options) -> Result<Self> {
        let open = || -> Result<Box<dyn ImageSource>> {
            Ok(match options.data.as_slice() {
                [folder] if folder.is_dir() => Box::new(ImageFolder::open(folder)?),
                archives => Box::new(TarShards::open(archives)?),
            })
        };
        let all = open()?.len();
        ensure!(options.held_out < all, "--held-out: {} of {all} images leave none to train on", options.held_out);
        let border = all - options.held_out;
        let source = Part::new(open()?, 0..border)?;
        let kept = (0..options.kept().min(border)).map(|_| OnceLock::new()).collect();
        Ok(Self {
            train: Arc::new(Squares { source, side: options.side, kept }),
            held_out: Part::new(open()?, border..all)?,
            side: options.side,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.train.source.len()
    }

    /// `count` of the images held out, spread evenly, `(N, 3, side, side)` in [-1, 1].
    pub(crate) fn held_out(&self, count: usize) -> Result<Tensor> {
        let count = count.min(self.held_out.len());
        let picture = |i: usize| -> Result<Tensor> {
            let picture = square(&self.held_out, i * self.held_out.len() / count, self.side)?;
            Ok(to_tensor(&picture, DType::F32, &Device::Cpu)?)
        };
        Ok(Tensor::cat(&(0..count).map(picture).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The batches from number `first` on, in order. Each is a function of its number and of `seed`.
    pub(crate) fn batches(&self, options: &Options, first: u64) -> Result<Batches> {
        let order = Order::new(self.len(), options.seed)?;
        let (readers, size, seed) = (options.readers as u64, options.batch_size as u64, options.seed);
        let (crop, grid) = (options.crop, options.grid());
        let start = |reader: u64| {
            let (sender, receiver) = sync_channel(2);
            let squares = self.train.clone();
            thread::spawn(move || {
                for number in (first + reader..).step_by(readers as usize) {
                    let draw = |position| Piece::draw(order.at(position), squares.side, crop, grid, seed, position);
                    let pieces: Vec<_> = (number * size..(number + 1) * size).map(draw).collect();
                    // Nobody listens any more: the run has ended.
                    if sender.send(Batch::read(squares.clone(), pieces, crop)).is_err() {
                        return;
                    }
                }
            });
            receiver
        };
        Ok(Batches { readers: (0..readers).map(start).collect(), next: 0 })
    }
}

/// Images as squares; the first of them are decoded once and kept as bytes.
struct Squares {
    source: Part<Box<dyn ImageSource>>,
    side: usize,
    kept: Vec<OnceLock<Arc<Picture>>>,
}

impl Squares {
    fn get(&self, index: usize) -> Result<Arc<Picture>> {
        let read = || Ok(Arc::new(square(&self.source, index, self.side)?));
        let Some(place) = self.kept.get(index) else { return read() };
        if let Some(picture) = place.get() {
            return Ok(picture.clone());
        }
        // Two threads may both have decoded it: either picture will do.
        let picture = read()?;
        Ok(place.get_or_init(|| picture).clone())
    }
}

/// A part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Of the images to train on.
    pub index: usize,
    /// Whether the image is mirrored first.
    pub mirrored: bool,
    /// Rows of the image above it.
    pub top: usize,
    /// Columns of the image, as mirrored, to the left of it.
    pub left: usize,
}

impl Piece {
    /// A random one whose offsets are multiples of `grid`, half of the time mirrored.
    fn draw(index: usize, side: usize, crop: usize, grid: usize, seed: u64, position: u64) -> Self {
        // Another seed than that of the order, which draws from the same stream.
        let mut rng = stream(!seed, Stream::Data, position);
        let [top, left] = [0; 2].map(|_: usize| grid * rng.random_range(0..=(side - crop) / grid));
        Self { index, mirrored: rng.random(), top, left }
    }

    /// Its bytes, channel by channel.
    fn cut(&self, picture: &Picture, crop: usize, bytes: &mut Vec<u8>) {
        let side = picture.width();
        let left = if self.mirrored { side - crop - self.left } else { self.left };
        for channel in 0..3 {
            for y in self.top..self.top + crop {
                let row = &picture.data()[3 * (y * side + left)..][..3 * crop];
                let row = row.iter().skip(channel).step_by(3);
                if self.mirrored { bytes.extend(row.rev()) } else { bytes.extend(row) }
            }
        }
    }
}

/// What one step is trained on.
pub(crate) struct Batch {
    pub pieces: Vec<Piece>,
    squares: Arc<Squares>,
    /// The parts, one after the other. They travel as bytes.
    bytes: Vec<u8>,
    crop: usize,
}

impl Batch {
    fn read(squares: Arc<Squares>, pieces: Vec<Piece>, crop: usize) -> Result<Self> {
        let mut bytes = Vec::with_capacity(pieces.len() * 3 * crop * crop);
        for piece in &pieces {
            piece.cut(&*squares.get(piece.index)?, crop, &mut bytes);
        }
        Ok(Self { pieces, squares, bytes, crop })
    }

    /// The parts, `(B, 3, crop, crop)` in [-1, 1].
    pub(crate) fn pixels(&self, device: &Device) -> Result<Tensor> {
        scaled(&self.bytes, self.crop, device)
    }

    /// Of the whole images, in pixels.
    pub(crate) fn side(&self) -> usize {
        self.squares.side
    }

    /// The whole images that parts `which` are of, mirrored where those are, `(N, 3, side, side)` in [-1, 1].
    pub(crate) fn whole(&self, which: &[usize], device: &Device) -> Result<Tensor> {
        let mut bytes = Vec::new();
        for &i in which {
            let whole = Piece { top: 0, left: 0, ..self.pieces[i] };
            whole.cut(&*self.squares.get(whole.index)?, self.squares.side, &mut bytes);
        }
        scaled(&bytes, self.squares.side, device)
    }
}

fn scaled(bytes: &[u8], side: usize, device: &Device) -> Result<Tensor> {
    let shape = (bytes.len() / (3 * side * side), 3, side, side);
    let bytes = Tensor::from_slice(bytes, shape, &Device::Cpu)?.to_device(device)?;
    Ok(bytes.to_dtype(DType::F32)?.affine(1. / 127.5, -1.)?)
}

/// What the threads read.
pub(crate) struct Batches {
    readers: Vec<Receiver<Result<Batch>>>,
    next: usize,
}

impl Batches {
    /// The next batch.
    pub(crate) fn next(&mut self) -> Result<Batch> {
        let reader = &self.readers[self.next];
        self.next = (self.next + 1) % self.readers.len();
        reader.recv().context("a thread that reads images has died")?
    }
}

fn square(source: &dyn ImageSource, index: usize, side: usize) -> Result<Picture> {
    let (name, _) = source.entry(index);
    Ok(center_crop(&decode(&name, &source.read(index)?, DEFAULT_MAX_PIXELS)?, side)?)
}
