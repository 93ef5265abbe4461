//! The parts of `train_codec`: what a batch is, what a critic learns and teaches, and when the learning rate ends.

mod command;
// The example's own modules: a test of its command alone would not see a latent that is one place off.
#[allow(dead_code)]
#[path = "../examples/codec_training/mod.rs"]
mod codec_training;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use clap::Parser;
use codec_training::critic::Critic;
use codec_training::latents::Latents;
use codec_training::options::Options;
use codec_training::pictures::Images;
use command::{pictures, text};
use fpdm_core::LatentCodec;
use fpdm_train::State;
use fpdm_vae::{TinyAutoencoder, TinyConfig, fresh};

const CPU: &Device = &Device::Cpu;

fn options(images: &Path, more: &[&str]) -> Result<Options> {
    let common = ["train_codec", text(images), "--out", "nowhere", "--held-out", "2", "--side", "16", "--crop", "8"];
    let small = ["--decoder-blocks", "1,1", "--batch-size", "5", "--readers", "2"];
    Ok(Options::try_parse_from(common.iter().chain(&small).chain(more))?)
}

#[test]
fn latents_of_parts_are_parts_of_latents() -> Result<()> {
    let folder = tempfile::tempdir()?;
    pictures(folder.path())?;
    let config = TinyConfig {
        encoder_block_out_channels: vec![8; 2],
        decoder_block_out_channels: vec![8; 2],
        num_encoder_blocks: vec![1, 1],
        num_decoder_blocks: vec![1, 1],
        ..TinyConfig::default()
    };
    let teacher = TinyAutoencoder::new(config, fresh(&VarMap::new(), 0, DType::F32, CPU))?;
    let (mut mirrored, mut inside) = (0, 0);
    for memory in ["2", "0"] {
        let options = options(folder.path(), &["--latents-of", "teacher", "--memory", memory])?;
        options.check()?;
        let images = Images::open(&options)?;
        assert_eq!((images.len(), options.grid()), (6, 2));
        let (mut latents, mut batches) = (Latents::new(options.kept(), 2, 8), images.batches(&options, 0)?);
        for _ in 0..6 {
            let batch = batches.next()?;
            let (x, z) = (batch.pixels(CPU)?, latents.of(&batch, &teacher, CPU)?);
            for (i, piece) in batch.pieces.iter().enumerate() {
                let file = folder.path().join(format!("{}.png", piece.index));
                let picture = fpdm_vae::image::read(file, 1 << 20)?;
                let whole = fpdm_vae::image::to_tensor(&picture, DType::F32, CPU)?;
                let whole = if piece.mirrored { whole.flip(&[3])? } else { whole };
                let part = |t: &Tensor, top, left, side| t.narrow(2, top, side)?.narrow(3, left, side)?.squeeze(0);
                assert!(piece.top % 2 == 0 && piece.left % 2 == 0, "{piece:?}");
                let apart = |a: Tensor, b: Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
                let pixels = apart(x.get(i)?, part(&whole, piece.top, piece.left, 8)?)?;
                assert!(pixels < 1e-6, "{piece:?} is {pixels} off");
                let all = teacher.encode(&whole)?.mean;
                let off = apart(z.get(i)?, part(&all, piece.top / 2, piece.left / 2, 4)?)?;
                assert!(off < 1e-6, "the latents of {piece:?} are {off} off");
                mirrored += usize::from(piece.mirrored);
                inside += usize::from(piece.top > 0 && piece.left > 0);
            }
        }
    }
    assert!(mirrored > 10 && inside > 10, "{mirrored} mirrored, {inside} inside");
    Ok(())
}

#[test]
fn a_critic_teaches_what_it_learns() -> Result<()> {
    let critic = |more: &[&str]| -> Result<Critic> {
        let small = ["--critic-width", "8", "--critic-levels", "2", "--adversarial-weight", "1"];
        Critic::new(&options(Path::new("images"), &[&small[..], more].concat())?, CPU)
    };
    let wave = |shift: f64| -> Result<Tensor> {
        Ok(Tensor::arange(0f32, 5. * 3. * 64., CPU)?.affine(0.37, shift)?.sin()?.reshape((5, 3, 8, 8))?)
    };
    // A picture without its fine structure, as a mean over pixels would have it.
    let x = wave(0.)?;
    let blur = |x: &Tensor| -> Result<Tensor> {
        let small = x.reshape((5, 3, 4, 2, 4, 2))?.mean_keepdim(5)?.mean_keepdim(3)?;
        Ok(small.broadcast_as((5, 3, 4, 2, 4, 2))?.reshape((5, 3, 8, 8))?)
    };
    let y = blur(&x)?;
    let size = |t: &Tensor| -> Result<f64> { Ok(t.abs()?.max_all()?.to_scalar::<f32>()?.into()) };
    let number = |t: &Tensor| -> Result<f64> { Ok(t.to_scalar::<f32>()?.into()) };

    let mut free = critic(&["--critic-penalty", "0"])?;
    let first = free.learn(&y, &x, 0.)?;
    assert!((number(&first.loss)? - 2f64.ln()).abs() < 0.3, "an untrained critic knows nothing");
    // Each gradient arrives, and is that of a picture and not of the critic's weights.
    let state = |critic: &Critic| -> Result<State> {
        let none = BTreeMap::new;
        let mut state = State {
            step: 0,
            seconds: 0.,
            settings: serde_json::Value::Null,
            weights: none(),
            exp_avg: none(),
            exp_avg_sq: none(),
            ema: Vec::new(),
        };
        critic.save(&mut state)?;
        Ok(state)
    };
    for (name, t) in &state(&free)?.exp_avg_sq {
        assert!(name.starts_with("critic.") && size(t)? > 0., "no gradient reaches {name}");
    }
    let weights = state(&free)?.weights;
    let decoded = Var::from_tensor(&y)?;
    let verdict = free.judge(&decoded, &x)?;
    for (what, part) in [("adversarial", verdict.adversarial), ("matching", verdict.matching)] {
        let gradients = part.backward()?;
        assert!(size(gradients.get(&decoded).expect("it is a variable"))? > 0., "{what}");
    }
    assert_eq!(number(&free.judge(&x, &x)?.matching)?, 0.);
    for (name, t) in state(&free)?.weights {
        assert_eq!(size(&(t - &weights[&name])?)?, 0., "{name}: judging is no learning");
    }

    // It learns to tell, less steeply with a penalty, and then a picture that follows it looks more like an original.
    let mut held = critic(&["--critic-penalty", "10"])?;
    let (mut steep, mut flat) = (0., 0.);
    for _ in 0..60 {
        let lesson = free.learn(&y, &x, 2e-3)?;
        steep = number(&lesson.slope)?;
        flat = number(&held.learn(&y, &x, 2e-3)?.slope)?;
    }
    let lesson = free.learn(&y, &x, 0.)?;
    assert!(number(&lesson.loss)? < 0.35 && number(&lesson.gap)? > 1., "{:?}", [lesson.loss, lesson.gap]);
    assert!(flat < 0.1 * steep, "slopes {flat} with and {steep} without a penalty");
    let verdict = free.judge(&decoded, &x)?;
    let gradient = verdict.adversarial.backward()?.remove(&decoded).expect("it is a variable").detach();
    let moved = (y - (&gradient / size(&gradient)?)? * 0.05)?;
    let (before, after) = (number(&verdict.adversarial)?, number(&free.judge(&moved, &x)?.adversarial)?);
    assert!(after < before, "{after} after {before}");

    // What is saved is all that there is.
    let mut other = critic(&["--critic-penalty", "0", "--seed", "1"])?;
    let mut saved = state(&free)?;
    saved.weights.insert("decoder.x".into(), x.clone());
    other.restore(&mut saved, 62)?;
    assert!(saved.weights.len() == 1 && saved.exp_avg.is_empty(), "the decoder's part is left");
    assert_eq!(number(&other.judge(&decoded, &x)?.matching)?, number(&verdict.matching)?);
    Ok(())
}

#[test]
fn the_rate_falls_with_the_time_that_is_left() -> Result<()> {
    let rates = |more: &[&str]| -> Result<Vec<f64>> {
        let common = ["--lr", "1", "--warmup", "10", "--steps", "110"];
        let options = options(Path::new("images"), &[&common[..], more].concat())?;
        options.check()?;
        Ok([(0, 0.), (10, 0.), (10, 50.), (10, 100.), (60, 0.)].map(|(step, t)| options.rate(step, t)).into())
    };
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(close(&rates(&[])?, &[0.1, 1., 1., 1., 0.5]), "without a limit the time does not matter");
    let timed = rates(&["--seconds", "100"])?;
    assert!(close(&timed, &[0.1, 1., 0.5, 0., 0.5]), "{timed:?}");
    assert!(close(&rates(&["--seconds", "100", "--decay", "constant"])?, &[0.1, 1., 1., 1., 1.]));

    let ramp = options(Path::new("images"), &["--matching-weight", "1", "--adversarial-from", "5", "--warmup", "3"])?;
    let shares = [4, 5, 6, 8, 100].map(|step| ramp.critic_share(step));
    assert_eq!(shares, [None, Some(0.25), Some(0.5), Some(1.), Some(1.)]);
    assert_eq!(options(Path::new("images"), &["--adversarial-from", "0"])?.critic_share(9), None);
    Ok(())
}
