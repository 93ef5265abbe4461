//! What a codec keeps of pictures: before and after side by side, and the PSNR of each.
//!
//! ```text
//! cargo run --release --example reconstruct -- photo.jpg face.png --codec madebyollin/taesd --size 256 --out pairs.png
//! ```

mod device;

use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::DType;
use clap::Parser;
use fpdm_vae::image::{self, DEFAULT_MAX_PIXELS};
use fpdm_vae::{open, open_tiled, round_trip};

#[derive(Parser)]
#[command(about = "Encodes and decodes pictures; writes before/after pairs and prints the PSNR of each")]
struct Args {
    /// PNG, JPEG or WebP files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// `pixels`, a Hub repository (stabilityai/sd-vae-ft-mse, madebyollin/taesd), a folder or a file
    #[arg(long)]
    codec: String,
    /// Side of the centre square, a multiple of 8
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Decode in tiles of so many latents; 0 takes the picture whole
    #[arg(long, default_value_t = 0)]
    tile: usize,
    /// Where the pairs go
    #[arg(long, default_value = "reconstruct.png")]
    out: PathBuf,
    /// Largest number of pixels of a file
    #[arg(long, default_value_t = DEFAULT_MAX_PIXELS)]
    max_pixels: u64,
    /// auto, cpu, cuda or metal
    #[arg(long, default_value = "auto")]
    device: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (f32, device) = (DType::F32, device::open(&args.device)?);
    let codec = match args.tile {
        0 => open(&args.codec, f32, &device)?,
        tile => open_tiled(&args.codec, tile, tile / 4, f32, &device)?,
    };
    let mut pairs = Vec::new();
    for path in &args.images {
        let before = image::center_crop(&image::read(path, args.max_pixels)?, args.size)?;
        let x = image::to_tensor(&before, f32, &device)?;
        let y = round_trip(&*codec, &x)?;
        println!("{}\t{:.2} dB", path.display(), image::psnr(&x, &y)?);
        pairs.push(before);
        pairs.append(&mut image::from_tensor(&y)?);
    }
    image::write_png(&args.out, &image::grid(&pairs, 2, 4)?).context("the pairs could not be written")?;
    println!("{}", args.out.display());
    Ok(())
}
