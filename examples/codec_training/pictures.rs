//! Batches of random parts of images, read ahead by threads; and the images that are held out.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
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
    train: Arc<Part<Box<dyn ImageSource>>>,
    held_out: Part<Box<dyn ImageSource>>,
    side: usize,
    crop: usize,
}

impl Images {
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
        Ok(Self {
            train: Arc::new(Part::new(open()?, 0..border)?),
            held_out: Part::new(open()?, border..all)?,
            side: options.side,
            crop: options.crop,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.train.len()
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
        let order = Order::new(self.train.len(), options.seed)?;
        let (readers, size, seed) = (options.readers as u64, options.batch_size as u64, options.seed);
        let (side, crop) = (self.side, self.crop);
        let start = |reader: u64| {
            let (sender, receiver) = sync_channel(2);
            let source = self.train.clone();
            thread::spawn(move || {
                for number in (first + reader..).step_by(readers as usize) {
                    let batch = (number * size..(number + 1) * size)
                        .map(|position| part(&*source, order.at(position), side, crop, seed, position))
                        .collect::<Result<Vec<_>>>();
                    // Nobody listens any more: the run has ended.
                    if sender.send(batch.map(|parts| parts.concat())).is_err() {
                        return;
                    }
                }
            });
            receiver
        };
        Ok(Batches { readers: (0..readers).map(start).collect(), next: 0, size: options.batch_size, crop })
    }
}

/// What the threads read.
pub(crate) struct Batches {
    readers: Vec<Receiver<Result<Vec<u8>>>>,
    next: usize,
    size: usize,
    crop: usize,
}

impl Batches {
    /// The next batch, `(B, 3, crop, crop)` in [-1, 1]. It travels as bytes.
    pub(crate) fn next(&mut self, device: &Device) -> Result<Tensor> {
        let reader = &self.readers[self.next];
        self.next = (self.next + 1) % self.readers.len();
        let bytes = reader.recv().context("a thread that reads images has died")??;
        let bytes = Tensor::from_vec(bytes, (self.size, 3, self.crop, self.crop), &Device::Cpu)?.to_device(device)?;
        Ok(bytes.to_dtype(DType::F32)?.affine(1. / 127.5, -1.)?)
    }
}

fn square(source: &dyn ImageSource, index: usize, side: usize) -> Result<Picture> {
    let (name, _) = source.entry(index);
    Ok(center_crop(&decode(&name, &source.read(index)?, DEFAULT_MAX_PIXELS)?, side)?)
}

/// A random part of an image, half of the time mirrored, channel by channel.
fn part(source: &dyn ImageSource, index: usize, side: usize, crop: usize, seed: u64, position: u64) -> Result<Vec<u8>> {
    let picture = square(source, index, side)?;
    // Another seed than that of the order, which draws from the same stream.
    let mut rng = stream(!seed, Stream::Data, position);
    let [top, left] = [0; 2].map(|_: usize| rng.random_range(0..=side - crop));
    let mirrored = rng.random::<bool>();
    let mut bytes = Vec::with_capacity(3 * crop * crop);
    for channel in 0..3 {
        for y in top..top + crop {
            let row = &picture.data()[3 * (y * side + left)..][..3 * crop];
            let row = row.iter().skip(channel).step_by(3);
            if mirrored { bytes.extend(row.rev()) } else { bytes.extend(row) }
        }
    }
    Ok(bytes)
}
