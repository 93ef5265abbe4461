//! The Hub client against a server on the loopback: what it stores, what it sends, and how it fails.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fpdm_core::Error;
use fpdm_core::hub::{Hub, HubClient, Located, RemoteFile, Source};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone, Debug)]
struct Request {
    path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// First and last byte asked for.
    fn range(&self) -> Option<(usize, Option<usize>)> {
        let (from, to) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse().ok()?, to.parse().ok()))
    }
}

#[derive(Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Send only so many bytes of the body, then hang up.
    cut: Option<usize>,
}

impl Reply {
    fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }
}

/// Answers each request by a closure and remembers it.
struct Server {
    address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(stream, &answer, &log);
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Request) -> Reply, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut request = Request { path: line.split(' ').nth(1).unwrap_or_default().to_owned(), headers: Vec::new() };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        request.headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status)?;
    write!(stream, "Content-Length: {}\r\n", reply.body.len())?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "\r\n")?;
    stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
    stream.flush()
}

fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

fn content() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// `data`, as a server that honours ranges sends it.
fn part(request: &Request, data: &[u8]) -> Reply {
    match request.range() {
        None => Reply { status: 200, body: data.to_vec(), ..Reply::default() },
        Some((from, _)) if from >= data.len() => {
            Reply::status(416).with("Content-Range", format!("bytes */{}", data.len()))
        }
        Some((from, to)) => {
            let end = to.map_or(data.len(), |to| (to + 1).min(data.len()));
            Reply { status: 206, body: data[from..end].to_vec(), ..Reply::default() }
                .with("Content-Range", format!("bytes {from}-{}/{}", end - 1, data.len()))
        }
    }
}

fn named(reply: Reply, etag: &str) -> Reply {
    reply.with("ETag", format!("\"{etag}\"")).with("X-Repo-Commit", COMMIT)
}

fn honest(data: Vec<u8>) -> Server {
    Server::start(move |request| match request.path.as_str() {
        "/org/name/resolve/main/model.safetensors" => named(part(request, &data), &sha256(&data)),
        _ => Reply::status(404),
    })
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub { endpoint: server.address.clone(), ..Hub::new(cache) }
}

const FILE: RemoteFile = RemoteFile { repo: "org/name", revision: "main", path: "model.safetensors" };

fn why(error: Error) -> String {
    let text = error.to_string();
    assert!(matches!(error, Error::Hub { .. }), "{text}");
    assert!(text.contains("org/name@") && text.contains("model.safetensors"), "{text}");
    text
}

fn incomplete(cache: &Path, etag: &str) -> PathBuf {
    cache.join(format!("models--org--name/blobs/{etag}.incomplete"))
}

#[test]
fn a_file_lands_in_the_cache_of_the_python_client() {
    let data = content();
    let server = honest(data.clone());
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { token: Some("secret".into()), ..hub(&server, cache.path()) };
    let mut steps = Vec::new();
    let path = hub.fetch(FILE, &mut |p| steps.push((p.file.to_owned(), p.received, p.total))).unwrap();
    let root = cache.path().join("models--org--name");
    assert_eq!(path, root.join("snapshots").join(COMMIT).join("model.safetensors"));
    assert_eq!(std::fs::read(&path).unwrap(), data);
    assert_eq!(std::fs::read(root.join("blobs").join(sha256(&data))).unwrap(), data);
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let size = data.len() as u64;
    assert_eq!(steps.first(), Some(&("model.safetensors".to_owned(), 0, Some(size))));
    assert_eq!(steps.last(), Some(&("model.safetensors".to_owned(), size, Some(size))));
    assert!(steps.is_sorted_by_key(|step| step.1));
    assert!(server.seen().iter().all(|r| r.header("authorization") == Some("Bearer secret")));

    // The second time only the metadata is asked for.
    let before = server.seen().len();
    assert_eq!(hub.fetch(FILE, &mut |_| panic!("nothing to download")).unwrap(), path);
    assert_eq!(server.seen().len(), before + 1);
    // A commit that is in the cache costs no request.
    let commit = RemoteFile { revision: COMMIT, ..FILE };
    assert_eq!(hub.fetch(commit, &mut |_| {}).unwrap(), path);
    assert_eq!(server.seen().len(), before + 1);
}

#[test]
fn the_token_stays_with_its_host() {
    let data = content();
    let etag = sha256(&data);
    let storage = {
        let data = data.clone();
        Server::start(move |request| part(request, &data).with("ETag", "\"another\""))
    };
    let target = format!("{}/bucket/key?signature=1", storage.address);
    let size = data.len();
    let server = Server::start(move |request| match request.path.as_str() {
        "/org/name/resolve/main/model.safetensors" => {
            Reply::status(307).with("Location", "/new/name/resolve/main/model.safetensors")
        }
        _ => Reply::status(302)
            .with("Location", &target)
            .with("X-Linked-ETag", format!("\"{etag}\""))
            .with("X-Linked-Size", size)
            .with("X-Repo-Commit", COMMIT),
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { token: Some("secret".into()), ..hub(&server, cache.path()) };
    let path = hub.fetch(FILE, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), data);
    assert!(server.seen().iter().all(|r| r.header("authorization").is_some()));
    assert!(!storage.seen().is_empty());
    assert!(storage.seen().iter().all(|r| r.header("authorization").is_none() && r.path.ends_with("signature=1")));
}

#[test]
fn a_cut_download_is_resumed() {
    let data = content();
    let etag = sha256(&data);
    let calls = Arc::new(Mutex::new(0));
    let server = {
        let data = data.clone();
        Server::start(move |request| {
            let mut reply = named(part(request, &data), &sha256(&data));
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            // The metadata, then half of the file.
            if *calls == 2 {
                reply.cut = Some(100_000);
            }
            reply
        })
    };
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server, cache.path());
    let text = why(hub.fetch(FILE, &mut |_| {}).unwrap_err());
    assert!(text.contains("100000 of 300000") && text.contains("resume"), "{text}");
    assert_eq!(std::fs::metadata(incomplete(cache.path(), &etag)).unwrap().len(), 100_000);
    let mut first = None;
    let path = hub.fetch(FILE, &mut |p| first = first.or(Some(p.received))).unwrap();
    assert_eq!(first, Some(100_000));
    assert_eq!(server.seen().last().unwrap().range(), Some((100_000, None)));
    assert_eq!(std::fs::read(path).unwrap(), data);
    assert!(!incomplete(cache.path(), &etag).exists());
}

#[test]
fn a_server_without_ranges_is_started_over() {
    let data = content();
    let etag = sha256(&data);
    let server = {
        let data = data.clone();
        Server::start(move |_| named(Reply { status: 200, body: data.clone(), ..Reply::default() }, &sha256(&data)))
    };
    let cache = tempfile::tempdir().unwrap();
    let partial = incomplete(cache.path(), &etag);
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, &data[..1234]).unwrap();
    let path = hub(&server, cache.path()).fetch(FILE, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), data);
}

#[test]
fn too_much_on_disk_is_started_over() {
    let data = content();
    let server = honest(data.clone());
    let cache = tempfile::tempdir().unwrap();
    let partial = incomplete(cache.path(), &sha256(&data));
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, vec![7; data.len() + 1]).unwrap();
    let path = hub(&server, cache.path()).fetch(FILE, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), data);
}

#[test]
fn wrong_content_is_removed() {
    let data = content();
    let stated = sha256(b"something else");
    let server = {
        let stated = stated.clone();
        Server::start(move |request| named(part(request, &data), &stated))
    };
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server, cache.path());
    let text = why(hub.fetch(FILE, &mut |_| {}).unwrap_err());
    assert!(text.contains("SHA-256") && text.contains(&stated) && text.contains(&sha256(&content())), "{text}");
    assert!(!incomplete(cache.path(), &stated).exists());
    assert!(!cache.path().join("models--org--name/snapshots").exists());
}

#[test]
fn a_damaged_copy_is_downloaded_anew() {
    let data = content();
    let server = honest(data.clone());
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server, cache.path());
    let path = hub.fetch(FILE, &mut |_| {}).unwrap();
    std::fs::write(&path, b"short").unwrap();
    assert_eq!(std::fs::read(hub.fetch(FILE, &mut |_| {}).unwrap()).unwrap(), data);
}

#[test]
fn small_files_are_checked_by_size() {
    let server = Server::start(|request| named(part(request, b"{}"), "9e26dfeeb6e641a33dae4961196235bdb965b21b"));
    let cache = tempfile::tempdir().unwrap();
    let file = RemoteFile { path: "sub folder/config.json", ..FILE };
    let path = hub(&server, cache.path()).fetch(file, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"{}");
    assert!(path.ends_with("sub folder/config.json"));
    assert!(server.seen()[0].path.ends_with("/sub%20folder/config.json"));
}

#[test]
fn refusals_say_what_to_do() {
    for (status, code, words) in [
        (401, "", vec!["401", "HF_TOKEN"]),
        (403, "GatedRepo", vec!["403", "HF_TOKEN", "terms"]),
        (404, "", vec!["404", "no such file"]),
        (404, "EntryNotFound", vec!["404", "no such file"]),
        (404, "RevisionNotFound", vec!["404", "no such revision"]),
        (404, "RepoNotFound", vec!["404", "no such repository"]),
        (503, "", vec!["503", "again"]),
        (418, "", vec!["418"]),
        (301, "", vec!["redirects to nowhere"]),
        (200, "", vec!["x-repo-commit", "HF_ENDPOINT"]),
    ] {
        let server = Server::start(move |_| Reply::status(status).with("X-Error-Code", code));
        let cache = tempfile::tempdir().unwrap();
        let text = why(hub(&server, cache.path()).fetch(FILE, &mut |_| {}).unwrap_err());
        assert!(words.iter().all(|word| text.contains(word)), "{status} {code}: {text}");
    }
}

#[test]
fn redirects_end() {
    let server = Server::start(|_| Reply::status(302).with("Location", "again"));
    let cache = tempfile::tempdir().unwrap();
    let text = why(hub(&server, cache.path()).fetch(FILE, &mut |_| {}).unwrap_err());
    assert!(text.contains("redirects"), "{text}");
}

#[test]
fn offline_is_the_cache() {
    let data = content();
    let server = honest(data.clone());
    let cache = tempfile::tempdir().unwrap();
    let offline = Hub { offline: true, ..hub(&server, cache.path()) };
    let text = why(offline.fetch(FILE, &mut |_| {}).unwrap_err());
    assert!(text.contains("HF_HUB_OFFLINE"), "{text}");
    assert!(server.seen().is_empty());
    let path = hub(&server, cache.path()).fetch(FILE, &mut |_| {}).unwrap();
    let asked = server.seen().len();
    for revision in ["main", COMMIT] {
        assert_eq!(offline.fetch(RemoteFile { revision, ..FILE }, &mut |_| {}).unwrap(), path);
    }
    let other = RemoteFile { path: "config.json", ..FILE };
    assert_eq!(offline.find(other, &mut |_| {}).unwrap(), None);
    assert!(offline.fetch(other, &mut |_| {}).unwrap_err().to_string().contains("HF_HUB_OFFLINE"));
    assert_eq!(server.seen().len(), asked);
}

#[test]
fn without_a_network_the_cache_is_used() {
    let data = content();
    let server = honest(data.clone());
    let cache = tempfile::tempdir().unwrap();
    let path = hub(&server, cache.path()).fetch(FILE, &mut |_| {}).unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = Hub { endpoint: format!("http://{closed}"), ..Hub::new(cache.path()) };
    assert_eq!(unreachable.fetch(FILE, &mut |_| {}).unwrap(), path);
    let empty = tempfile::tempdir().unwrap();
    let unreachable = Hub { cache: empty.path().into(), ..unreachable };
    let text = why(unreachable.fetch(FILE, &mut |_| {}).unwrap_err());
    assert!(text.contains("cannot be reached"), "{text}");
}

#[test]
fn names_do_not_lead_out_of_the_cache() {
    let server = honest(content());
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server, cache.path());
    for file in [
        RemoteFile { repo: "../name", ..FILE },
        RemoteFile { repo: "a/b/c", ..FILE },
        RemoteFile { revision: "../../x", ..FILE },
        RemoteFile { path: "../x", ..FILE },
        RemoteFile { path: "/etc/passwd", ..FILE },
        RemoteFile { path: "", ..FILE },
    ] {
        assert!(matches!(hub.fetch(file, &mut |_| {}), Err(Error::Hub { .. })), "{file:?}");
    }
    assert!(server.seen().is_empty());
    let evil = Server::start(|r| part(r, b"x").with("ETag", "\"../../evil\"").with("X-Repo-Commit", COMMIT));
    assert!(Hub { endpoint: evil.address.clone(), ..hub }.fetch(FILE, &mut |_| {}).is_err());
    assert!(!cache.path().join("evil").exists() && !cache.path().parent().unwrap().join("evil").exists());
}

#[test]
fn the_environment_of_the_python_client_is_honoured() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), " from file\n").unwrap();
    let root = home.path().to_path_buf();
    let with = |vars: &[(&str, &str)]| {
        let vars: Vec<(String, String)> = vars.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let root = root.clone();
        Hub::from_vars(move |name| match name {
            "HF_HOME" => Some(root.clone().into()),
            _ => vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.into()),
        })
    };
    let plain = with(&[]).unwrap();
    assert_eq!(plain.cache, root.join("hub"));
    assert_eq!((plain.endpoint.as_str(), plain.offline), ("https://huggingface.co", false));
    assert_eq!(plain.token.as_deref(), Some("from file"));
    assert!(!format!("{plain:?}").contains("from file"));
    let set = with(&[
        ("HF_HUB_CACHE", "/elsewhere"),
        ("HF_ENDPOINT", "http://mirror/"),
        ("HF_TOKEN", "from variable"),
        ("HF_HUB_OFFLINE", "True"),
    ])
    .unwrap();
    assert_eq!(set.cache, Path::new("/elsewhere"));
    assert_eq!((set.endpoint.as_str(), set.offline), ("http://mirror", true));
    assert_eq!(set.token.as_deref(), Some("from variable"));
    assert!(!with(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    assert!(matches!(with(&[("HF_ENDPOINT", "mirror")]), Err(Error::Config { .. })));
}

#[test]
fn sources_are_parsed() {
    let hub = |id: &str, revision: &str, file: Option<&str>| Source::Hub {
        id: id.into(),
        revision: revision.into(),
        file: file.map(str::to_owned),
    };
    assert_eq!(Source::parse("org/name").unwrap(), hub("org/name", "main", None));
    assert_eq!(Source::parse("org/name@v1").unwrap(), hub("org/name", "v1", None));
    assert_eq!(Source::parse("org/name/a/b.pt@v1").unwrap(), hub("org/name", "v1", Some("a/b.pt")));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.safetensors");
    std::fs::write(&file, b"").unwrap();
    assert_eq!(Source::parse(folder.path().to_str().unwrap()).unwrap(), Source::Folder(folder.path().into()));
    assert_eq!(Source::parse(file.to_str().unwrap()).unwrap(), Source::File(file));
    for bad in ["", "name", "/no/such/file", "./no/such", "no/such.safetensors", "~/weights", "a/b/c", "org/name@"] {
        let error = Source::parse(bad).unwrap_err();
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains("org/name"), "{bad}: {error}");
    }
}

fn locate(text: &str, client: &dyn HubClient) -> fpdm_core::Result<Located> {
    Source::parse(text)?.locate(client, &mut |_| {})
}

#[test]
fn weights_are_located_in_a_repository() {
    let index = r#"{"weight_map": {"a": "s-2.safetensors", "b": "s-1.safetensors", "c": "s-2.safetensors"}}"#;
    let server = Server::start(move |request| {
        let (rest, body): (_, &[u8]) = match request.path.rsplit_once("/main/").map(|(_, file)| file) {
            Some(file @ "transformer/diffusion_pytorch_model.safetensors.index.json") => (file, index.as_bytes()),
            Some(file @ ("transformer/s-1.safetensors" | "transformer/s-2.safetensors")) => (file, b"shard"),
            Some(file @ ("transformer/config.json" | "transformer/diffusion.json")) => (file, b"{}"),
            _ => return Reply::status(404),
        };
        named(part(request, body), &rest.replace('/', "-"))
    });
    let cache = tempfile::tempdir().unwrap();
    let online = hub(&server, cache.path());
    let found = locate("org/name", &online).unwrap();
    let names: Vec<_> = found.weights.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["s-1.safetensors", "s-2.safetensors"]);
    assert!(found.config.as_ref().unwrap().ends_with("transformer/config.json"));
    assert!(found.diffusion.as_ref().unwrap().ends_with("transformer/diffusion.json"));
    assert_eq!(locate("org/name", &Hub { offline: true, ..online.clone() }).unwrap(), found);
    let text = locate("org/other.weights/x.pt", &online).unwrap_err().to_string();
    assert!(text.contains("404") && text.contains("x.pt"), "{text}");
}

#[test]
fn weights_are_located_in_a_folder() {
    let nobody = Hub { offline: true, ..Hub::new("") };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    assert!(locate(&path, &nobody).unwrap_err().to_string().contains("model.safetensors"));
    std::fs::write(folder.path().join("epoch-1.pt"), b"").unwrap();
    let found = locate(&path, &nobody).unwrap();
    let weights = vec![folder.path().join("epoch-1.pt")];
    assert_eq!(found, Located { config: None, diffusion: None, weights });
    std::fs::write(folder.path().join("epoch-2.pt"), b"").unwrap();
    assert!(locate(&path, &nobody).unwrap_err().to_string().contains("epoch-1.pt, epoch-2.pt"));
    std::fs::write(folder.path().join("config.json"), b"").unwrap();
    std::fs::write(folder.path().join("model.safetensors"), b"").unwrap();
    let found = locate(&path, &nobody).unwrap();
    assert_eq!(found.weights, [folder.path().join("model.safetensors")]);
    assert_eq!((found.config, found.diffusion), (Some(folder.path().join("config.json")), None));
    let beside = folder.path().join("diffusion.json");
    std::fs::write(&beside, b"").unwrap();
    assert_eq!(locate(&path, &nobody).unwrap().diffusion, Some(beside.clone()));
    let file = folder.path().join("epoch-2.pt");
    assert_eq!(locate(file.to_str().unwrap(), &nobody).unwrap().diffusion, Some(beside), "beside a file, too");
}

#[test]
fn a_broken_index_lists_its_problems() {
    let nobody = Hub { offline: true, ..Hub::new("") };
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for (text, word) in [
        ("{", "JSON"),
        ("{}", "weight_map"),
        (r#"{"weight_map": {}}"#, "no shard"),
        (r#"{"weight_map": {"a": "../x.safetensors", "b": "y.safetensors"}}"#, "y.safetensors is missing"),
    ] {
        std::fs::write(&index, text).unwrap();
        let error = locate(index.to_str().unwrap(), &nobody).unwrap_err();
        assert!(matches!(error, Error::Weights { .. }) && error.to_string().contains(word), "{error}");
    }
}
