//! The one error of the workspace.

use std::path::{Path, PathBuf};

/// What went wrong, with the value that was wrong and, where there is one, the fix.
///
/// The library crates call each other through traits, so they share this type; a plug-in wraps its own errors in
/// [`Error::Other`]. Running out of budget is not an error: a solve says why it ended in
/// [`Solution::reason`](crate::Solution::reason).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation of Candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),

    /// A tensor has another shape, dtype or device than the call needs.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument and where it was given.
        what: String,
        /// What would have been accepted.
        expected: String,
        /// What came.
        got: String,
    },

    /// A setting is out of its range or does not fit another.
    #[error("`{field}`: {why}")]
    Config {
        /// The field, as the user wrote it.
        field: String,
        /// The value, the rule it breaks and the fix.
        why: String,
    },

    /// A NaN or an infinity appeared.
    #[error(
        "{at} is not finite after {iter} applications; lower the learning rate, damp the solver or check the weights"
    )]
    NonFinite {
        /// The quantity.
        at: String,
        /// Applications of the map done so far (0: before the first).
        iter: usize,
    },

    /// A weight file does not hold what the model needs. All problems are listed at once.
    #[error("{origin}: {}", problems.join("; "))]
    Weights {
        /// The file or repository.
        origin: String,
        /// One line a problem.
        problems: Vec<String>,
    },

    /// A file could not be had from the Hub.
    #[error("hub: {file} of {repo}: {why}")]
    Hub {
        /// Repository and revision.
        repo: String,
        /// The file in it.
        file: String,
        /// What happened, and the fix.
        why: String,
    },

    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path that was read or written.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A plug-in's own error.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// A result with the workspace's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A setting that cannot be used: `field` as the user wrote it, `why` with the value and the fix.
    pub fn config(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Config { field: field.into(), why: why.into() }
    }

    /// A tensor that does not fit.
    pub fn shape(what: impl Into<String>, expected: impl std::fmt::Debug, got: impl std::fmt::Debug) -> Self {
        Self::Shape { what: what.into(), expected: format!("{expected:?}"), got: format!("{got:?}") }
    }

    /// A file-system error at `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// Wraps a plug-in's error.
    pub fn other(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(source.into())
    }
}
