//! Images in tar archives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use fpdm_core::{Error, Result};

use super::images::{ImageSource, empty, is_image};

const BLOCK: u64 = 512;

/// Tar archives with WebDataset's naming: files that share their path up to the first dot of the file name belong to
/// one sample, `KEY.cls` holds its class as a number. Without `.cls` files the folder of an image is its class.
///
/// Archives are listed once and read in place.
pub struct TarShards {
    shards: Vec<Shard>,
    classes: Vec<String>,
    images: Vec<Image>,
}

struct Shard {
    path: PathBuf,
    file: Mutex<File>,
}

struct Image {
    shard: usize,
    member: Member,
    class: u32,
}

#[derive(Clone)]
struct Member {
    name: String,
    offset: u64,
    len: u64,
}

impl TarShards {
    /// Lists the archives, in the order given; images keep their order in them.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] that names an archive that is truncated or no tar archive, an image without a
    /// class where others have one, or archives without images.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let (mut shards, mut found, mut numbers) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (shard, path) in paths.iter().enumerate() {
            let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
            for member in list(&mut file, path)? {
                if is_image(&member.name) {
                    found.push((shard, member));
                } else if let Some(key) = member.name.strip_suffix(".cls") {
                    let bytes = read_at(&mut file, path, &member)?;
                    let text = String::from_utf8_lossy(&bytes);
                    let class: u32 = text.trim().parse().map_err(|_| {
                        let why = format!("{}: {} holds {text:?}, which is no number", path.display(), member.name);
                        Error::config("data", why)
                    })?;
                    numbers.insert((shard, key.to_owned()), class);
                }
            }
            shards.push(Shard { path: path.clone(), file: Mutex::new(file) });
        }
        if found.is_empty() {
            return Err(empty(paths.first().map_or(Path::new("no archive"), PathBuf::as_path)));
        }
        let mut classes: Vec<String> = found.iter().map(|(_, member)| folder(&member.name).to_owned()).collect();
        classes.sort();
        classes.dedup();
        let mut images = Vec::with_capacity(found.len());
        for (shard, member) in found {
            let class = if numbers.is_empty() {
                classes.binary_search_by(|c| c.as_str().cmp(folder(&member.name))).unwrap_or_default() as u32
            } else {
                *numbers.get(&(shard, key(&member.name).to_owned())).ok_or_else(|| {
                    let at = paths[shard].display();
                    Error::config("data", format!("{at}: {} has no {}.cls", member.name, key(&member.name)))
                })?
            };
            images.push(Image { shard, member, class });
        }
        if let Some(largest) = numbers.values().max() {
            classes = (0..=*largest).map(|class| class.to_string()).collect();
        }
        Ok(Self { shards, classes, images })
    }
}

impl ImageSource for TarShards {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn entry(&self, index: usize) -> (String, u32) {
        let Image { shard, member, class } = &self.images[index];
        (format!("{}:{}", self.shards[*shard].path.display(), member.name), *class)
    }

    fn read(&self, index: usize) -> Result<Vec<u8>> {
        let Image { shard, member, .. } = &self.images[index];
        let Shard { path, file } = &self.shards[*shard];
        read_at(&mut file.lock().unwrap_or_else(PoisonError::into_inner), path, member)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }
}

fn folder(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn key(name: &str) -> &str {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    name[start..].find('.').map_or(name, |dot| &name[..start + dot])
}

fn read_at(file: &mut File, path: &Path, member: &Member) -> Result<Vec<u8>> {
    let mut bytes = vec![0; member.len as usize];
    let mut read = || {
        file.seek(SeekFrom::Start(member.offset))?;
        file.read_exact(&mut bytes)
    };
    read().map_err(|e| Error::io(path.join(&member.name), e))?;
    Ok(bytes)
}

/// The files of an archive (POSIX.1-2017 `pax`, section "ustar Interchange Format"; long names of pax and GNU).
fn list(file: &mut File, path: &Path) -> Result<Vec<Member>> {
    let end = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let damaged = |at: u64, what: &str| Error::config("data", format!("{}: {what} at byte {at}", path.display()));
    let (mut members, mut at, mut long_name) = (Vec::new(), 0, None);
    while at + BLOCK <= end {
        let block = read_at(file, path, &Member { name: String::new(), offset: at, len: BLOCK })?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(members);
        }
        let sum: u64 =
            block.iter().enumerate().map(|(i, b)| u64::from(if (148..156).contains(&i) { b' ' } else { *b })).sum();
        if octal(&block[148..156]) != Some(sum) {
            return Err(damaged(at, "no tar header, or a corrupt one,"));
        }
        let len = octal(&block[124..136]).ok_or_else(|| damaged(at, "a file size that cannot be read"))?;
        let offset = at + BLOCK;
        if len > end - offset {
            return Err(damaged(at, "truncated: a file that goes on beyond the end"));
        }
        let content = Member { name: String::new(), offset, len };
        match block[156] {
            b'x' => long_name = pax_path(&read_at(file, path, &content)?).or(long_name),
            b'L' => long_name = Some(text(&read_at(file, path, &content)?)),
            b'0' | 0 => {
                let prefix = if &block[257..262] == b"ustar" { text(&block[345..500]) } else { String::new() };
                let short = text(&block[..100]);
                let name = if prefix.is_empty() { short } else { format!("{prefix}/{short}") };
                let name = long_name.take().unwrap_or(name);
                members.push(Member { name: name.trim_start_matches("./").to_owned(), offset, len });
            }
            _ => long_name = None,
        }
        at = offset + len.div_ceil(BLOCK) * BLOCK;
    }
    // An archive ends with empty blocks; some writers leave them out, but none ends within a block.
    if at == end { Ok(members) } else { Err(damaged(end, "truncated")) }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A number of a header: octal digits, or GNU's binary form.
fn octal(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return field[1..].iter().try_fold(0u64, |n, b| n.checked_mul(256)?.checked_add(u64::from(*b)));
    }
    let text = text(field);
    u64::from_str_radix(text.trim(), 8).ok()
}

/// The path in a pax header of lines `LENGTH KEY=VALUE`.
fn pax_path(bytes: &[u8]) -> Option<String> {
    String::from_utf8_lossy(bytes).lines().find_map(|line| Some(line.split_once(" path=")?.1.to_owned()))
}
