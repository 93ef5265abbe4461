//! All distances, and how they are told.

use anyhow::Result;
use candle_core::Tensor;
use fpdm_eval::{
    Gaussian, Kid, Neighbour, PrecisionRecall, frechet_distance, kid, kid_unbiased, nearest, precision_recall,
};
use serde_json::{Value, json};

use super::options::Options;

/// Training pictures shown beside a sample.
pub(crate) const NEIGHBOURS: usize = 3;

const QUANTILES: [f64; 10] = [0., 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.];

/// The quantiles of held-out pictures below which samples are counted.
const BELOW: [f64; 4] = [0.01, 0.05, 0.25, 0.5];

/// Features of the sets that are compared.
pub(crate) struct Sets<'a> {
    pub(crate) samples: &'a Tensor,
    pub(crate) reference: &'a Tensor,
    pub(crate) held_out: Option<&'a Tensor>,
}

/// What was found.
pub(crate) struct Found {
    name: String,
    fd: f64,
    kid: Kid,
    manifold: PrecisionRecall,
    floor: Option<Floor>,
    /// The nearest training pictures of each sample.
    pub(crate) neighbours: Vec<Vec<Neighbour>>,
}

/// What pictures that were not trained on reach.
struct Floor {
    fd: f64,
    kid: f64,
    neighbours: Vec<Vec<Neighbour>>,
}

pub(crate) fn distances(options: &Options, network: &str, sets: &Sets) -> Result<Found> {
    let of_reference = Gaussian::of(sets.reference)?;
    let fd = |features: &Tensor| -> Result<f64> { Ok(frechet_distance(&Gaussian::of(features)?, &of_reference)?) };
    let floor = match sets.held_out {
        Some(held_out) => Some(Floor {
            fd: fd(held_out)?,
            kid: kid_unbiased(held_out, sets.reference)?,
            neighbours: nearest(held_out, sets.reference, 1)?,
        }),
        None => None,
    };
    Ok(Found {
        // Only the network that FID is defined by may give an FID.
        name: if network == "Inception-v3" { "FID".to_owned() } else { format!("FD ({network})") },
        fd: fd(sets.samples)?,
        kid: kid(sets.samples, sets.held_out.unwrap_or(sets.reference), options.kid())?,
        manifold: precision_recall(sets.reference, sets.samples, options.k)?,
        floor,
        neighbours: nearest(sets.samples, sets.reference, NEIGHBOURS.min(sets.reference.dim(0)?))?,
    })
}

impl Found {
    pub(crate) fn json(&self, options: &Options, network: &str, sets: &Sets) -> Result<Value> {
        let count = |features: &Tensor| features.dims()[0];
        let held_out = self.floor.as_ref().map(|floor| {
            json!({ "frechet_distance": floor.fd, "kid": floor.kid, "nearest_reference": quantiles(&floor.neighbours) })
        });
        Ok(json!({
            "samples": { "set": options.samples, "count": count(sets.samples), "through": options.through },
            "reference": { "set": options.reference, "count": count(sets.reference) },
            "held_out": options.held_out.as_ref().zip(sets.held_out)
                .map(|(set, features)| json!({ "set": set, "count": count(features) })),
            "features": network,
            "weights": options.weights()?,
            "frechet_distance": { "name": self.name, "value": self.fd, "against": "reference" },
            "kid": {
                "value": self.kid.value, "mean": self.kid.mean, "std": self.kid.std,
                "subsets": options.subsets, "subset_size": self.kid.size, "seed": options.seed,
                "against": if self.floor.is_some() { "held_out" } else { "reference" },
            },
            "precision": self.manifold.precision,
            "recall": self.manifold.recall,
            "k": options.k,
            "nearest_reference": quantiles(&self.neighbours),
            "held_out_against_reference": held_out,
            "below_held_out": self.floor.as_ref().map(|floor| below(&self.neighbours, &floor.neighbours)),
        }))
    }

    pub(crate) fn summary(&self) -> String {
        let mut text = format!(
            "{} {:.2}   KID {:.4} (subsets: {:.4} ± {:.4})   precision {:.3}   recall {:.3}",
            self.name,
            self.fd,
            self.kid.value,
            self.kid.mean,
            self.kid.std,
            self.manifold.precision,
            self.manifold.recall
        );
        let line = |neighbours: &[Vec<Neighbour>]| {
            let sorted = sorted(neighbours);
            let at = |q: f64| quantile(&sorted, q);
            format!("{:.2} at least, {:.2} at 5 %, {:.2} median", at(0.), at(0.05), at(0.5))
        };
        text += &format!("\nnearest training picture of a sample:           {}", line(&self.neighbours));
        if let Some(floor) = &self.floor {
            text += &format!("\nnearest training picture of a held-out picture: {}", line(&floor.neighbours));
            let below = below(&self.neighbours, &floor.neighbours);
            let share = |q: f64| 100. * below[&format!("{q}")].as_f64().unwrap_or_default();
            text += &format!(
                "\nas near as the nearest 1, 5, 50 % of held-out pictures: {:.1}, {:.1}, {:.1} % of samples",
                share(0.01),
                share(0.05),
                share(0.5)
            );
            text += &format!("\nheld-out pictures: {} {:.2}   KID {:.4}", self.name, floor.fd, floor.kid);
        }
        text
    }
}

/// Distances to the nearest, from the smallest on.
fn sorted(neighbours: &[Vec<Neighbour>]) -> Vec<f64> {
    let mut distances: Vec<f64> = neighbours.iter().filter_map(|n| Some(n.first()?.distance)).collect();
    distances.sort_by(f64::total_cmp);
    distances
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn quantiles(neighbours: &[Vec<Neighbour>]) -> Value {
    let sorted = sorted(neighbours);
    QUANTILES.iter().map(|&q| (format!("{q}"), quantile(&sorted, q).into())).collect::<serde_json::Map<_, _>>().into()
}

/// The share of samples that are nearer to a training picture than a quantile of held-out pictures: by chance the quantile
/// itself, with copies more.
fn below(samples: &[Vec<Neighbour>], held_out: &[Vec<Neighbour>]) -> Value {
    let (samples, held_out) = (sorted(samples), sorted(held_out));
    let share = |q: f64| {
        let bound = quantile(&held_out, q);
        samples.iter().filter(|&&distance| distance < bound).count() as f64 / samples.len() as f64
    };
    BELOW.iter().map(|&q| (format!("{q}"), share(q).into())).collect::<serde_json::Map<_, _>>().into()
}
