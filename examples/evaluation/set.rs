//! A set of pictures, wherever they come from.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use fpdm_train::{ImageFolder, ImageSource, LatentIndex, TarShards};
use fpdm_vae::image::{DEFAULT_MAX_PIXELS, center_crop, decode, to_tensor};
use fpdm_vae::{LatentCodec, round_trip};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// The sheet that the sampling commands write beside their samples: no sample.
const SHEET: &str = "grid.png";

/// Pictures in a fixed order.
pub(crate) struct Set {
    /// As the user wrote it.
    pub(crate) name: String,
    content: Content,
    /// What the samples are sent through first.
    through: Option<(String, Box<dyn LatentCodec>)>,
    side: Option<usize>,
    device: Device,
}

/// How sets are read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading<'a> {
    /// What decodes latents.
    pub(crate) codec: Option<&'a str>,
    /// The side that the centre square of every picture is scaled to.
    pub(crate) side: Option<usize>,
    /// What pictures are sent through first.
    pub(crate) through: Option<&'a str>,
}

enum Content {
    Images { source: Box<dyn ImageSource>, indices: Vec<usize> },
    Latents { z: Tensor, codec_name: String, codec: Box<dyn LatentCodec> },
}

impl Set {
    /// Opens PATH or PATH#A..B.
    pub(crate) fn open(text: &str, how: Reading, device: &Device) -> Result<Self> {
        let (path, run) = split(text)?;
        ensure!(path.exists(), "{}: there is no such file or folder", path.display());
        let codec = |name: &str| -> Result<_> { Ok((name.to_owned(), fpdm_vae::open(name, DType::F32, device)?)) };
        let content = match latents(&path)? {
            Some(z) => {
                let name = how.codec.with_context(|| format!("{text} holds latents; give --codec to decode them"))?;
                let range = within(&run, z.dim(0)?, text)?;
                let (codec_name, codec) = codec(name)?;
                Content::Latents { z: z.narrow(0, range.start, range.len())?, codec_name, codec }
            }
            None => {
                let source = images(&path)?;
                let all: Vec<usize> = (0..source.len()).filter(|&i| !is_sheet(&source.entry(i).0)).collect();
                let range = within(&run, all.len(), text)?;
                Content::Images { source, indices: all[range].to_vec() }
            }
        };
        let through = how.through.map(codec).transpose()?;
        Ok(Self { name: text.to_owned(), content, through, side: how.side, device: device.clone() })
    }

    pub(crate) fn len(&self) -> usize {
        match &self.content {
            Content::Images { indices, .. } => indices.len(),
            Content::Latents { z, .. } => z.dims()[0],
        }
    }

    /// The file of a picture, or its number.
    pub(crate) fn entry(&self, i: usize) -> String {
        match &self.content {
            Content::Images { source, indices } => source.entry(indices[i]).0,
            Content::Latents { .. } => format!("{}:{i}", self.name),
        }
    }

    /// What tells this set from others: the bytes of every file, and what is done to them.
    pub(crate) fn digest(&self, hash: &mut Sha256) -> Result<()> {
        match &self.content {
            Content::Images { source, indices } => {
                for &i in indices {
                    hash.update(Sha256::digest(source.read(i)?));
                }
            }
            Content::Latents { z, codec_name, .. } => {
                hash.update(codec_name.as_bytes());
                for value in z.flatten_all()?.to_vec1::<f32>()? {
                    hash.update(value.to_le_bytes());
                }
            }
        }
        hash.update(format!("side {:?}", self.side).as_bytes());
        // A codec is what it makes of the first picture: its files may be anywhere.
        if self.through.is_some() || matches!(self.content, Content::Latents { .. }) {
            for value in self.pixels(0..1)?[0].flatten_all()?.to_vec1::<f32>()? {
                hash.update(value.to_le_bytes());
            }
        }
        Ok(())
    }

    /// Some pictures, `(1, 3, H, W)` in [-1, 1] each, on the CPU.
    pub(crate) fn pixels(&self, range: Range<usize>) -> Result<Vec<Tensor>> {
        let pictures = match &self.content {
            Content::Images { source, indices } => {
                // Only the side: a codec need not be shared between threads.
                let side = self.side;
                let read = |&i: &usize| -> Result<Tensor> {
                    let (name, _) = source.entry(i);
                    let mut picture = decode(&name, &source.read(i)?, DEFAULT_MAX_PIXELS)?;
                    if let Some(side) = side {
                        picture = center_crop(&picture, side)?;
                    }
                    Ok(to_tensor(&picture, DType::F32, &Device::Cpu)?)
                };
                indices[range].par_iter().map(read).collect::<Result<Vec<_>>>()?
            }
            Content::Latents { z, codec, .. } => {
                let z = z.narrow(0, range.start, range.len())?.to_device(&self.device)?;
                apart(&codec.decode(&z)?)?
            }
        };
        let Some((name, codec)) = &self.through else { return Ok(pictures) };
        let through = |x: &Tensor| -> Result<Tensor> {
            Ok(round_trip(&**codec, &x.to_device(&self.device)?)?.to_device(&Device::Cpu)?)
        };
        let alike = pictures.iter().all(|x| x.dims() == pictures[0].dims());
        let sent = match alike {
            true => through(&Tensor::cat(&pictures, 0)?).and_then(|x| apart(&x)),
            false => pictures.iter().map(through).collect(),
        };
        sent.with_context(|| format!("--through {name}"))
    }
}

/// The pictures of a batch, cut to the range that a file could hold.
fn apart(batch: &Tensor) -> Result<Vec<Tensor>> {
    let batch = batch.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.clamp(-1f32, 1f32)?;
    (0..batch.dim(0)?).map(|i| Ok(batch.narrow(0, i, 1)?)).collect()
}

/// The first picture of a part and the one after its last, where they are said.
type Ends = (Option<usize>, Option<usize>);

/// PATH#A..B; a path that exists is taken whole, whatever its name.
fn split(text: &str) -> Result<(PathBuf, Option<Ends>)> {
    let Some((path, run)) = text.rsplit_once('#').filter(|_| !Path::new(text).exists()) else {
        return Ok((PathBuf::from(text), None));
    };
    let number =
        |part: &str| -> Result<Option<usize>> { if part.is_empty() { Ok(None) } else { Ok(Some(part.parse()?)) } };
    let parsed = run.split_once("..").and_then(|(a, b)| Some((number(a).ok()?, number(b).ok()?)));
    match parsed {
        Some(run) => Ok((PathBuf::from(path), Some(run))),
        None => bail!("{text}: `{run}` is no run of pictures; write #A..B, #A.. or #..B"),
    }
}

fn within(run: &Option<Ends>, len: usize, text: &str) -> Result<Range<usize>> {
    let (start, end) = run.unwrap_or_default();
    let (start, end) = (start.unwrap_or(0), end.unwrap_or(len));
    ensure!(start < end && end <= len, "{text}: {start}..{end} is no part of {len} pictures");
    Ok(start..end)
}

fn is_sheet(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|name| name == SHEET)
}

fn images(path: &Path) -> Result<Box<dyn ImageSource>> {
    if !path.is_dir() {
        return Ok(Box::new(TarShards::open(&[path.to_path_buf()])?));
    }
    let mut archives = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        archives.push(entry?.path());
    }
    archives.retain(|path| path.extension().is_some_and(|e| e == "tar"));
    archives.sort();
    match archives.is_empty() {
        true => Ok(Box::new(ImageFolder::open(path)?)),
        false => Ok(Box::new(TarShards::open(&archives)?)),
    }
}

/// The latents `(N, C, H, W)` of a folder of shards or a safetensors file, if it is one.
fn latents(path: &Path) -> Result<Option<Tensor>> {
    let files: Vec<PathBuf> = if path.is_dir() {
        match path.join("index.json").exists() {
            true => {
                LatentIndex::read(path)?.into_iter().flat_map(|index| index.shards).map(|s| path.join(s.file)).collect()
            }
            false => return Ok(None),
        }
    } else if path.extension().is_some_and(|e| e == "safetensors") {
        vec![path.to_path_buf()]
    } else {
        return Ok(None);
    };
    let mut parts = Vec::new();
    for file in &files {
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).with_context(|| file.display().to_string())?;
        let z = ["mean", "latents"].iter().find_map(|name| tensors.get(*name)).filter(|z| z.rank() == 4);
        let z = z.with_context(|| format!("{}: no tensor `mean` or `latents` of (N, C, H, W)", file.display()))?;
        parts.push(z.to_dtype(DType::F32)?);
    }
    ensure!(!parts.is_empty(), "{}: the index names no shards", path.display());
    Ok(Some(Tensor::cat(&parts, 0)?))
}
