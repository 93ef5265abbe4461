use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What encoded the latents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecId {
    /// `pixels`, or a repository such as `madebyollin/taesd`. A codec's own scale and shift are in its own config.
    pub id: String,
    /// Pixels along one side of a latent, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<usize>,
}

/// The affine map between a codec's latents and those of the network, `(latents − mean) / std`, so that the network sees
/// about unit variance. A codec's own scaling belongs to its training data; other pictures have other latents.
///
/// One number for all channels, or one a channel. The default changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Normalisation {
    /// What was subtracted.
    pub mean: Vec<f64>,
    /// What latents were divided by.
    pub std: Vec<f64>,
}

impl Default for Normalisation {
    fn default() -> Self {
        Self { mean: vec![0.], std: vec![1.] }
    }
}

impl Normalisation {
    /// The network's latents from the codec's, `(B, C, H, W)`.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fpdm_core::Normalisation;
    ///
    /// let normal = Normalisation { mean: vec![1., 0.], std: vec![2.] };
    /// let latents = Tensor::new(&[5f64, 6.], &Device::Cpu)?.reshape((1, 2, 1, 1))?;
    /// let x0 = normal.apply(&latents)?;
    /// assert_eq!(x0.flatten_all()?.to_vec1::<f64>()?, [2., 3.]);
    /// assert_eq!(normal.undo(&x0)?.flatten_all()?.to_vec1::<f64>()?, [5., 6.]);
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] for numbers of another count of channels.
    pub fn apply(&self, latents: &Tensor) -> Result<Tensor> {
        self.fits(latents)?;
        if self.is_identity() {
            return Ok(latents.clone());
        }
        if let ([mean], [std]) = (&self.mean[..], &self.std[..]) {
            return Ok(latents.affine(1. / std, -mean / std)?);
        }
        let (mean, std) = (row(&self.mean, latents)?, row(&self.std, latents)?);
        Ok(latents.broadcast_sub(&mean)?.broadcast_div(&std)?)
    }

    /// The codec's latents from the network's, `(B, C, H, W)`.
    ///
    /// # Errors
    /// As [`Normalisation::apply`].
    pub fn undo(&self, x0: &Tensor) -> Result<Tensor> {
        self.fits(x0)?;
        if self.is_identity() {
            return Ok(x0.clone());
        }
        if let ([mean], [std]) = (&self.mean[..], &self.std[..]) {
            return Ok(x0.affine(*std, *mean)?);
        }
        Ok(x0.broadcast_mul(&row(&self.std, x0)?)?.broadcast_add(&row(&self.mean, x0)?)?)
    }

    fn fits(&self, x: &Tensor) -> Result<()> {
        let channels = x.dim(1)?;
        match [self.mean.len(), self.std.len()].into_iter().find(|&n| n != 1 && n != channels) {
            Some(n) => Err(Error::shape("a normalisation: one number, or one a channel", channels, n)),
            None => Ok(()),
        }
    }

    /// Whether it changes nothing.
    pub fn is_identity(&self) -> bool {
        self.mean.iter().all(|&m| m == 0.) && self.std.iter().all(|&s| s == 1.)
    }

    /// Refuses empty lists, and numbers by which nothing can be divided.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, its value and the fix.
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &str, why| Err(Error::config(format!("latents.{field}"), why));
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            match values.iter().find(|v| !v.is_finite()) {
                Some(bad) => return refuse(field, format!("{bad} is not finite")),
                None if values.is_empty() => {
                    return refuse(field, "[] is empty; give one number, or one a channel".into());
                }
                None => {}
            }
        }
        match self.std.iter().find(|&&s| s <= 0.) {
            Some(bad) => refuse("std", format!("{bad} is no standard deviation; use a positive number")),
            None => Ok(()),
        }
    }

    /// Refuses lists for another number of channels.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, its length and the fix.
    pub fn check_channels(&self, channels: usize) -> Result<()> {
        for (field, n) in [("mean", self.mean.len()), ("std", self.std.len())] {
            if n != 1 && n != channels {
                let why = format!("{n} numbers for {channels} channels; give 1 or {channels}");
                return Err(Error::config(format!("latents.{field}"), why));
            }
        }
        Ok(())
    }
}

/// `(1, C, 1, 1)` or `(1, 1, 1, 1)`, like `x`.
fn row(values: &[f64], x: &Tensor) -> Result<Tensor> {
    let row = Tensor::new(values, &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?;
    Ok(row.reshape((1, values.len(), 1, 1))?)
}
