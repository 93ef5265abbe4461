//! What is asked of a Hub: one file.

use std::path::PathBuf;

use crate::{Error, Result};

/// A file of a model repository at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteFile<'a> {
    /// `org/name`.
    pub repo: &'a str,
    /// A branch, a tag or a commit hash.
    pub revision: &'a str,
    /// The path in the repository, with `/` between folders.
    pub path: &'a str,
}

impl RemoteFile<'_> {
    /// The error of this file.
    pub fn error(&self, why: impl Into<String>) -> Error {
        Error::Hub { repo: format!("{}@{}", self.repo, self.revision), file: self.path.to_owned(), why: why.into() }
    }
}

/// How far a download has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The repository.
    pub repo: &'a str,
    /// The path in the repository.
    pub file: &'a str,
    /// Bytes on disk, those of an earlier, interrupted download included.
    pub received: u64,
    /// Bytes of the whole file, where the server said so.
    pub total: Option<u64>,
}

/// Anything that can put a file of a repository on the local disk.
pub trait HubClient: Send + Sync {
    /// The local path of the file, which is downloaded first if need be; `None` if the repository has no such file.
    ///
    /// # Errors
    /// [`Error::Hub`] if it cannot be known or had, [`Error::Io`] if it cannot be stored.
    fn find(&self, file: RemoteFile, progress: &mut dyn FnMut(Progress)) -> Result<Option<PathBuf>>;

    /// As [`HubClient::find`], for a file that has to be there.
    ///
    /// # Errors
    /// As [`HubClient::find`], and [`Error::Hub`] if the repository has no such file.
    fn fetch(&self, file: RemoteFile, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        self.find(file, progress)?.ok_or_else(|| {
            file.error("404, there is no such file; check the name of the repository, the revision and the file")
        })
    }
}
