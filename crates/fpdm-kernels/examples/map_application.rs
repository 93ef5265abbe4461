//! Times one application of the fixed-point map of a diffusion transformer: prints the median in milliseconds.
//!
//! `cargo run --release --example map_application -- [width] [heads] [batch] [tokens] [repeats]`

use candle_core::{Device, Result, Tensor};
use fpdm_kernels::*;
use std::time::Instant;

struct Map {
    input: Tensor,
    output: (Tensor, Tensor),
    qkv: (Tensor, Tensor),
    proj: (Tensor, Tensor),
    fc1: (Tensor, Tensor),
    fc2: (Tensor, Tensor),
    heads: usize,
}

impl Map {
    fn new(width: usize, heads: usize) -> Result<Self> {
        let dev = Device::Cpu;
        let weight = |o, i| Tensor::randn(0f32, (i as f32).powf(-0.5), (o, i), &dev);
        let layer = |o, i| Ok::<_, candle_core::Error>((weight(o, i)?, Tensor::randn(0f32, 0.1, o, &dev)?));
        Ok(Self {
            // The state's half of a layer on (state, injection).
            input: weight(2 * width, 2 * width)?.narrow(1, 0, width)?,
            output: layer(width, 2 * width)?,
            qkv: layer(3 * width, width)?,
            proj: layer(width, width)?,
            fc1: layer(4 * width, width)?,
            fc2: layer(width, 4 * width)?,
            heads,
        })
    }

    fn apply(&self, z: &Tensor, injected: &Tensor, m: &[Tensor]) -> Result<Tensor> {
        let h = linear_add_gelu(z, &self.input, injected)?;
        let u = linear(&h, &self.output.0, Some(&self.output.1))?;
        let h = layer_norm_modulate(&u, &m[0], &m[1], 1e-6)?;
        let a = attention(&linear(&h, &self.qkv.0, Some(&self.qkv.1))?, self.heads)?;
        let u = linear_gate_residual(&a, &self.proj.0, &self.proj.1, &u, &m[2])?;
        let h = layer_norm_modulate(&u, &m[3], &m[4], 1e-6)?;
        let h = linear_gelu(&h, &self.fc1.0, Some(&self.fc1.1))?;
        linear_gate_residual(&h, &self.fc2.0, &self.fc2.1, &u, &m[5])
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().ok());
    let mut next = |default| args.next().flatten().unwrap_or(default);
    let (width, heads, batch, tokens, repeats) = (next(384), next(6), next(8), next(256), next(60));
    let dev = Device::Cpu;
    let map = Map::new(width, heads)?;
    let z = Tensor::randn(0f32, 1., (batch, tokens, width), &dev)?;
    let injected = Tensor::randn(0f32, 1., (batch, tokens, 2 * width), &dev)?;
    let modulation = Tensor::randn(0f32, 0.5, (batch, 6 * width), &dev)?.chunk(6, 1)?;
    let mut times = Vec::with_capacity(repeats);
    for _ in 0..repeats + 5 {
        let start = Instant::now();
        let out = map.apply(&z, &injected, &modulation)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        drop(out);
    }
    times.drain(..5);
    times.sort_by(f64::total_cmp);
    println!("{:.2}", times[times.len() / 2]);
    Ok(())
}
