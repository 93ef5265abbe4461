//! Requests to the Hub.
//!
//! hf-hub's own `Api` is not used for them: it sends the token to whatever host a redirect names, needs a server that
//! honours `Range`, and panics on a redirect without a location.

use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::cache::is_inside;
use super::client::RemoteFile;
use super::settings::Hub;

const MAX_REDIRECTS: usize = 10;

/// Why there is no answer.
pub(super) enum Failure {
    /// The server says so.
    NoSuchFile,
    /// No server answered.
    Unreachable(String),
    /// An answer that is of no use; the text names it and the fix.
    Refused(String),
}

/// What a file is before it is downloaded.
pub(super) struct Metadata {
    /// The commit that the revision stands for.
    pub(super) commit: String,
    /// The name of the content: a SHA-256 for LFS files, a git hash for small ones.
    pub(super) etag: String,
    /// Bytes, where the server said so.
    pub(super) size: Option<u64>,
}

impl Metadata {
    /// The SHA-256 of the content, in lower case hexadecimal, if the server stated it.
    pub(super) fn sha256(&self) -> Option<String> {
        (self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| self.etag.to_ascii_lowercase())
    }
}

pub(super) struct Http<'a> {
    agent: Agent,
    hub: &'a Hub,
}

impl<'a> Http<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        let agent = Agent::config_builder()
            // Redirects are followed here, where it is decided who gets the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("fpdm/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have another length and other ranges.
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        Self { agent, hub }
    }

    /// Asks for one byte, as hf-hub does: `HEAD` is refused by some mirrors.
    pub(super) fn metadata(&self, file: RemoteFile) -> Result<Metadata, Failure> {
        let (mut commit, mut etag, mut size) = (None, None, None);
        let mut url = self.url(file);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&url, Some("bytes=0-0"))?;
            let headers = response.headers();
            // The first answer is the Hub's; a storage host behind it has ETags of its own.
            commit = commit.or_else(|| text(headers, "x-repo-commit"));
            etag = etag.or_else(|| text(headers, "x-linked-etag").or_else(|| text(headers, "etag")));
            size = size.or_else(|| text(headers, "x-linked-size").and_then(|v| v.parse().ok()));
            let status = response.status().as_u16();
            let redirect = matches!(status, 301 | 302 | 303 | 307 | 308);
            if redirect && (commit.is_none() || etag.is_none() || size.is_none()) {
                url = next(&url, headers)?;
                continue;
            }
            if !redirect {
                self.check(file, status, headers)?;
                size = size.or_else(|| match status {
                    200 => text(headers, "content-length").and_then(|v| v.parse().ok()),
                    _ => content_range(headers).and_then(|(_, total)| total),
                });
            }
            let missing = |name: &str| {
                Failure::Refused(format!("{url} answered without `{name}`; is HF_ENDPOINT a Hub or a mirror of it?"))
            };
            let commit = commit.filter(|c| is_inside(c) && !c.contains('/')).ok_or_else(|| missing("x-repo-commit"))?;
            let etag = etag
                .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned())
                .filter(|etag| is_inside(etag) && !etag.contains('/'))
                .ok_or_else(|| missing("etag"))?;
            return Ok(Metadata { commit, etag, size });
        }
        Err(Failure::Refused(format!("more than {MAX_REDIRECTS} redirects; check HF_ENDPOINT")))
    }

    /// The content from byte `start` on, through any redirects. The status is 200, 206 or 416.
    pub(super) fn content(&self, file: RemoteFile, start: u64) -> Result<Response<Body>, Failure> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let mut url = self.url(file);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&url, range.as_deref())?;
            let status = response.status().as_u16();
            if matches!(status, 301 | 302 | 303 | 307 | 308) {
                url = next(&url, response.headers())?;
                continue;
            }
            self.check(file, status, response.headers())?;
            return Ok(response);
        }
        Err(Failure::Refused(format!("more than {MAX_REDIRECTS} redirects; check HF_ENDPOINT")))
    }

    fn request(&self, url: &str, range: Option<&str>) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        if let Some(token) = &self.hub.token
            && origin(url).is_some()
            && origin(url) == origin(&self.hub.endpoint)
        {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|e| match e {
            ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                Failure::Refused(format!("{e} at {url}; check HF_ENDPOINT and HF_TOKEN for stray characters"))
            }
            e => Failure::Unreachable(e.to_string()),
        })
    }

    fn check(&self, file: RemoteFile, status: u16, headers: &HeaderMap) -> Result<(), Failure> {
        let code = text(headers, "x-error-code").unwrap_or_default();
        let endpoint = &self.hub.endpoint;
        match (status, code.as_str()) {
            (200 | 206 | 416, _) => Ok(()),
            (401, _) => Err(Failure::Refused(format!(
                "401, the repository is private, gated or does not exist, and {}; set HF_TOKEN to a token that may \
                 read it",
                if self.hub.token.is_some() { "the token is not accepted" } else { "no token is set" }
            ))),
            (403, _) => Err(Failure::Refused(format!(
                "403, access is denied; accept the terms at {endpoint}/{} and set HF_TOKEN to a token that may read it",
                file.repo
            ))),
            (404, "RepoNotFound") => Err(Failure::Refused("404, there is no such repository; check its name".into())),
            (404, "RevisionNotFound") => {
                Err(Failure::Refused("404, there is no such revision; use a branch, a tag or a commit hash".into()))
            }
            (404, _) => Err(Failure::NoSuchFile),
            (429 | 500..=599, _) => Err(Failure::Unreachable(format!("status {status}, try again later"))),
            _ => Err(Failure::Refused(format!("status {status} {code}; check HF_ENDPOINT, now {endpoint}"))),
        }
    }

    fn url(&self, file: RemoteFile) -> String {
        format!(
            "{}/{}/resolve/{}/{}",
            self.hub.endpoint,
            file.repo,
            escape(file.revision, b""),
            escape(file.path, b"/")
        )
    }
}

/// `(first byte, whole size)` of `bytes 5-9/10`; the first is 0 in `bytes */10`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = text(headers, "content-range")?;
    let (range, total) = value.strip_prefix("bytes")?.trim().split_once('/')?;
    let start = range.split('-').next()?.trim().parse().unwrap_or(0);
    Some((start, total.trim().parse().ok()))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Where a redirect of `url` leads.
fn next(url: &str, headers: &HeaderMap) -> Result<String, Failure> {
    let refused = |why: String| Failure::Refused(format!("{why}; check HF_ENDPOINT"));
    let location = text(headers, "location").ok_or_else(|| refused(format!("{url} redirects to nowhere")))?;
    let (scheme, host) = url.split_once("://").unwrap_or(("https", url));
    let host = host.split('/').next().unwrap_or(host);
    let target = if location.contains("://") {
        location
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        let folder = url.split(['?', '#']).next().and_then(|u| u.rsplit_once('/')).map_or(url, |(folder, _)| folder);
        format!("{folder}/{location}")
    };
    match origin(&target) {
        Some((to, ..)) if scheme.eq_ignore_ascii_case("https") && to != "https" => {
            Err(refused(format!("{url} redirects to {target}, which is not encrypted")))
        }
        Some(_) => Ok(target),
        None => Err(refused(format!("{url} redirects to {target}, which is no address"))),
    }
}

/// Percent-encodes all but the characters that are safe in a path, and `keep`.
fn escape(text: &str, keep: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') || keep.contains(&b) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}
