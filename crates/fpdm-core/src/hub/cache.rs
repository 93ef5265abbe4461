//! The folders of the Python client's cache.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::client::RemoteFile;
use crate::{Error, Result};

/// The part of the cache that belongs to one repository at one revision, and the file that is asked for.
pub(super) struct RepoCache<'a> {
    file: RemoteFile<'a>,
    root: PathBuf,
    folder: String,
    repo: CacheRepo,
}

impl<'a> RepoCache<'a> {
    /// Refuses names that would lead out of the cache.
    pub(super) fn new(root: &Path, file: RemoteFile<'a>) -> Result<Self> {
        let part = |s: &str| {
            !s.is_empty()
                && !s.starts_with('.')
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        let parts: Vec<&str> = file.repo.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|s| part(s)) {
            return Err(file.error("no name of a repository; write org/name"));
        }
        if !is_inside(file.revision) {
            return Err(file.error("no name of a revision; write a branch, a tag or a commit hash"));
        }
        if !is_inside(file.path) {
            return Err(file.error("no path inside a repository; write it relative and without `..`"));
        }
        let repo = Repo::with_revision(file.repo.to_owned(), RepoType::Model, file.revision.to_owned());
        let folder = repo.folder_name();
        Ok(Self { file, root: root.to_path_buf(), folder, repo: Cache::new(root.to_path_buf()).repo(repo) })
    }

    /// Whether the revision is a commit hash.
    pub(super) fn is_commit(&self) -> bool {
        is_commit(self.file.revision)
    }

    /// The commit that the revision stood for when it was last asked.
    fn commit(&self) -> Option<String> {
        if self.is_commit() {
            return Some(self.file.revision.to_owned());
        }
        let path = self.root.join(&self.folder).join("refs").join(self.file.revision);
        let commit = std::fs::read_to_string(path).ok()?.trim().to_owned();
        is_inside(&commit).then_some(commit)
    }

    /// Whether any file of this revision is here.
    pub(super) fn has_revision(&self) -> bool {
        self.commit().is_some_and(|commit| self.repo.pointer_path(&commit).is_dir())
    }

    /// The file, if it is here.
    pub(super) fn snapshot_file(&self) -> Option<PathBuf> {
        // hf-hub's own look-up knows a commit hash only if there is a `refs` file of that name, and there never is.
        let path = self.repo.pointer_path(&self.commit()?).join(self.file.path);
        path.is_file().then_some(path)
    }

    /// Where content goes that the server calls `etag`.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(etag)
    }

    /// Locks a blob against other processes until the handle is dropped.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let folder = self.root.join(".locks").join(&self.folder);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let path = folder.join(format!("{etag}.lock"));
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        match file.lock() {
            // Some network file systems have no locks; one process alone is still right.
            Err(e) if e.kind() == std::io::ErrorKind::Unsupported => Ok(file),
            Err(e) => Err(Error::io(&path, e)),
            Ok(()) => Ok(file),
        }
    }

    /// Makes `blob` the file of `commit` and returns its path there.
    pub(super) fn publish(&self, commit: &str, blob: &Path) -> Result<PathBuf> {
        let pointer = self.repo.pointer_path(commit).join(self.file.path);
        let folder = pointer.parent().unwrap_or(&self.root);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        if !same_file(&pointer, blob) {
            match std::fs::remove_file(&pointer) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&pointer, e)),
                _ => {}
            }
            link(blob, &pointer, Path::new(self.file.path).components().count()).map_err(|e| Error::io(&pointer, e))?;
        }
        if !self.is_commit() {
            self.repo.create_ref(commit).map_err(|e| Error::io(self.root.join(&self.folder).join("refs"), e))?;
        }
        Ok(pointer)
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Relative, so that the cache can be moved.
#[cfg(unix)]
fn link(blob: &Path, pointer: &Path, depth: usize) -> std::io::Result<()> {
    let mut target: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
    target.extend(["blobs".as_ref(), blob.file_name().unwrap_or_default()]);
    match std::os::unix::fs::symlink(target, pointer) {
        // Another process was faster, with the same content.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Links need a privilege elsewhere.
#[cfg(not(unix))]
fn link(blob: &Path, pointer: &Path, _depth: usize) -> std::io::Result<()> {
    std::fs::hard_link(blob, pointer).or_else(|_| std::fs::copy(blob, pointer).map(drop))
}

pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether `path` stays inside the folder it is joined to, on any system.
pub(super) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && !path.ends_with('/')
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}
