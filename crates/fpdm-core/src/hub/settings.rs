//! Where the Hub is, who asks, and where files are kept.

use std::ffi::OsString;
use std::path::PathBuf;

use super::cache::RepoCache;
use super::client::{HubClient, Progress, RemoteFile};
use super::download::download;
use super::http::{Failure, Http};
use crate::{Error, Result};

/// The Hugging Face Hub or a mirror of it, with the cache of the Python client.
///
/// The files are shared with `huggingface_hub`: `models--org--name/{blobs,refs,snapshots}`. A file of a branch or tag
/// is looked up at the server every time, one of a commit hash only until it is in the cache; without a connection
/// the cache is used. An interrupted download is resumed, a finished one is checked: its size always, its SHA-256
/// where the server states it, which it does for every file kept in LFS.
#[derive(Clone)]
pub struct Hub {
    /// The address, without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--org--name`.
    pub cache: PathBuf,
    /// Sent to [`Hub::endpoint`] and to no other host, redirected or not.
    pub token: Option<String>,
    /// Whether only the cache is used.
    pub offline: bool,
}

impl Hub {
    /// The public Hub without a token, and files kept in `cache`.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self { endpoint: "https://huggingface.co".into(), cache: cache.into(), token: None, offline: false }
    }

    /// As the environment says, by the variables of the Python client: see [`Hub::from_vars`].
    ///
    /// # Errors
    /// As [`Hub::from_vars`].
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// As the given variables say.
    ///
    /// `HF_ENDPOINT`, the address. `HF_HUB_CACHE`, the cache; else `$HF_HOME/hub`, else
    /// `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`. `HF_TOKEN`, the token; else the content of
    /// the file `HF_TOKEN_PATH`, else of `token` in the home folder. `HF_HUB_OFFLINE`, one of `1`, `true`, `yes`, `on`.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no home directory and no variable names a cache, or if the address is none.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let path = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let text = |name: &str| var(name).map(|v| v.to_string_lossy().trim().to_owned()).filter(|v| !v.is_empty());
        let user = path("HOME").or_else(std::env::home_dir);
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| user.map(|user| user.join(".cache").join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|home| home.join("hub"))).ok_or_else(|| {
            Error::config("HF_HUB_CACHE", "not set, and there is no home directory to keep downloads in; set it")
        })?;
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::config(
                "HF_ENDPOINT",
                format!("`{endpoint}` is no address; write https://huggingface.co or a mirror of it"),
            ));
        }
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        let token = text("HF_TOKEN").or_else(|| {
            let token = std::fs::read_to_string(token_file?).ok()?;
            Some(token.trim().to_owned()).filter(|token| !token.is_empty())
        });
        let offline = text("HF_HUB_OFFLINE")
            .is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_ascii_lowercase().as_str()));
        Ok(Self { endpoint: endpoint.trim_end_matches('/').to_owned(), cache, token, offline })
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .finish()
    }
}

impl HubClient for Hub {
    fn find(&self, file: RemoteFile, progress: &mut dyn FnMut(Progress)) -> Result<Option<PathBuf>> {
        let cache = RepoCache::new(&self.cache, file)?;
        let cached = cache.snapshot_file();
        // A commit never changes.
        if cached.is_some() && (cache.is_commit() || self.offline) {
            return Ok(cached);
        }
        if self.offline {
            // Offline, the cache is the repository: other files of it may be asked for next.
            if cache.has_revision() {
                return Ok(None);
            }
            return Err(file.error(format!(
                "not in the cache {} and HF_HUB_OFFLINE is set; unset it, or download once while online",
                self.cache.display()
            )));
        }
        let http = Http::new(self);
        match http.metadata(file) {
            Ok(meta) => download(&http, file, &cache, &meta, progress).map(Some),
            Err(Failure::NoSuchFile) => Ok(None),
            Err(Failure::Unreachable(_)) if cached.is_some() => Ok(cached),
            Err(Failure::Unreachable(why)) => Err(file.error(format!(
                "{} cannot be reached ({why}) and the file is not in the cache {}; check the network or HF_ENDPOINT",
                self.endpoint,
                self.cache.display()
            ))),
            Err(Failure::Refused(why)) => Err(file.error(why)),
        }
    }

    fn fetch(&self, file: RemoteFile, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        self.find(file, progress)?.ok_or_else(|| {
            if self.offline {
                file.error(format!(
                    "not in the cache {} and HF_HUB_OFFLINE is set; unset it, or download once while online",
                    self.cache.display()
                ))
            } else {
                file.error("404, there is no such file; check the name of the repository, the revision and the file")
            }
        })
    }
}
