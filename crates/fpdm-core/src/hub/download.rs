//! One file from the server to the cache, whole and checked.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::RepoCache;
use super::client::{Progress, RemoteFile};
use super::http::{Failure, Http, Metadata, content_range};
use crate::{Error, Result};

/// The file in the snapshot of its commit, downloaded if the cache has no good copy.
pub(super) fn download(
    http: &Http,
    file: RemoteFile,
    cache: &RepoCache,
    meta: &Metadata,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf> {
    let blob = cache.blob(&meta.etag);
    let folder = blob.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let _lock = cache.lock(&meta.etag)?;
    let present = length(&blob);
    if present.is_none() || meta.size.is_some_and(|size| present != Some(size)) {
        // The name that the Python client gives it, and beside the blob, so that the rename is atomic.
        let partial = folder.join(format!("{}.incomplete", meta.etag));
        let size = receive(http, file, meta, &partial, progress)?;
        verify(file, meta, size, &partial)?;
        std::fs::rename(&partial, &blob).map_err(|e| Error::io(&blob, e))?;
    }
    cache.publish(&meta.commit, &blob)
}

/// Appends what is missing to `partial`; returns the size that the file should have, where that is known.
fn receive(
    http: &Http,
    file: RemoteFile,
    meta: &Metadata,
    partial: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<u64>> {
    let mut start = length(partial).unwrap_or(0);
    if meta.size.is_some_and(|size| start > size) {
        start = 0;
    }
    if start > 0 && meta.size == Some(start) {
        return Ok(meta.size);
    }
    let ask = |start| {
        http.content(file, start).map_err(|failure| match failure {
            Failure::NoSuchFile => file.error("404, the file has gone while it was asked for"),
            Failure::Unreachable(why) => file.error(format!("the connection failed ({why}); run again to resume")),
            Failure::Refused(why) => file.error(why),
        })
    };
    let mut response = ask(start)?;
    // A server may ignore the range, or send another one: what is on disk then does not fit what comes.
    let first = |response: &ureq::http::Response<ureq::Body>| match response.status().as_u16() {
        206 => content_range(response.headers()).map(|(first, _)| first),
        200 => Some(0),
        _ => None,
    };
    if first(&response) != Some(start) {
        if first(&response) != Some(0) {
            response = ask(0)?;
        }
        start = 0;
    }
    let whole = match response.status().as_u16() {
        200 => response.body().content_length(),
        206 => content_range(response.headers()).and_then(|(_, total)| total),
        // Byte 0 of an empty file is out of its range.
        _ => Some(0),
    };
    let total = meta.size.or(whole);
    let mut out = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(start == 0)
        .append(start > 0)
        .open(partial)
        .map_err(|e| Error::io(partial, e))?;
    let mut received = start;
    let mut report = |received| progress(Progress { repo: file.repo, file: file.path, received, total });
    report(received);
    if response.status().as_u16() == 416 {
        return Ok(total);
    }
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                out.write_all(&buffer[..n]).map_err(|e| Error::io(partial, e))?;
                received += n as u64;
                report(received);
                if total.is_some_and(|total| received > total) {
                    break;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(truncated(file, received, total, &e.to_string())),
        }
    }
    out.sync_all().map_err(|e| Error::io(partial, e))?;
    Ok(total)
}

fn truncated(file: RemoteFile, received: u64, total: Option<u64>, why: &str) -> Error {
    let total = total.map_or("an unknown number of".to_owned(), |total| total.to_string());
    file.error(format!("the connection ended after {received} of {total} bytes ({why}); run again to resume"))
}

/// Size and SHA-256; what is wrong is removed, what is only short is kept.
fn verify(file: RemoteFile, meta: &Metadata, size: Option<u64>, partial: &Path) -> Result<()> {
    let got = length(partial).unwrap_or(0);
    match size {
        Some(size) if got < size => return Err(truncated(file, got, Some(size), "no more data")),
        Some(size) if got > size => {
            remove(partial)?;
            return Err(file.error(format!("expected {size} bytes, got {got}; removed, run again to download it anew")));
        }
        _ => {}
    }
    let Some(expected) = meta.sha256() else { return Ok(()) };
    let got = sha256(partial)?;
    if got != expected {
        remove(partial)?;
        return Err(
            file.error(format!("expected SHA-256 {expected}, got {got}; removed, run again to download it anew"))
        );
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).map_err(|e| Error::io(path, e))?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|e| Error::io(path, e))
}

fn length(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len())
}
