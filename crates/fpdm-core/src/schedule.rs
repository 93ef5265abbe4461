//! How much signal and how much noise there is at a time.

/// A noise level: `x_t = alpha·x0 + sigma·eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The time that the network is told.
    pub t: f64,
    /// The factor of the clean latent.
    pub alpha: f64,
    /// The factor of the noise.
    pub sigma: f64,
}
