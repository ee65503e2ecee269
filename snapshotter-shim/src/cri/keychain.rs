//! Credentials of pulls, by image: in memory, and in a file that only root reads, so that a
//! restarted daemon can go on fetching. Gone with the image.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use spanfs_fetch::{CredentialLookup, Login, Reference, Secret};

/// Images with credentials on the largest nodes; beyond, those that were learned first go.
const IMAGES_MAX: usize = 4096;
/// So many of them, each of a few kilobytes.
const FILE_LEN_MAX: u64 = 64 << 20;

/// A login as it came. No derived `Debug`: it must not come into a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptLogin {
    /// The only host that it is for; any host of the image's without.
    pub(super) server: Option<String>,
    pub(super) username: String,
    pub(super) secret: String,
    pub(super) kind: String,
}

impl KeptLogin {
    pub(super) const PASSWORD: &str = "password";
    pub(super) const IDENTITY: &str = "identity";
    pub(super) const REGISTRY: &str = "registry";

    fn login(&self) -> Login {
        let secret = Secret::new(self.secret.as_str());
        match self.kind.as_str() {
            Self::IDENTITY => Login::IdentityToken(secret),
            Self::REGISTRY => Login::RegistryToken(secret),
            _ => Login::Password { username: self.username.clone(), password: secret },
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    /// Rises with each pull.
    number: u64,
    host: String,
    repository: String,
    /// As the image service names it.
    id: Option<String>,
    login: KeptLogin,
}

/// All credentials, by the normalised name of the image.
#[derive(Default, Serialize, Deserialize)]
struct Entries {
    number: u64,
    images: BTreeMap<String, Entry>,
}

/// Credentials of pulls.
pub struct Keychain {
    path: PathBuf,
    entries: Mutex<Entries>,
}

impl Keychain {
    /// What an earlier run kept in the file at `path`. One that can't be read is as good as none.
    pub fn open(path: PathBuf) -> Self {
        let entries = match read(&path) {
            Ok(entries) => entries,
            Err(error) => {
                // The error names a position at most.
                tracing::warn!(path = %path.display(), %error, "kept logins are not used");
                Entries::default()
            }
        };
        Self { path, entries: Mutex::new(entries) }
    }

    /// The source of credentials for the fetcher.
    pub fn lookup(self: &Arc<Self>) -> CredentialLookup {
        let keychain = Arc::clone(self);
        CredentialLookup::new("CRI pulls", move |host, repository| {
            std::future::ready(Ok(keychain.find(host, repository)))
        })
    }

    pub(super) fn find(&self, host: &str, repository: &str) -> Option<Login> {
        let entries = self.entries.lock();
        let of_image = entries.images.values().filter(|entry| {
            let login_host = entry.login.server.as_deref().map_or(entry.host.as_str(), server_host);
            entry.repository == repository && canonical(login_host) == canonical(host)
        });
        of_image.max_by_key(|entry| entry.number).map(|entry| entry.login.login())
    }

    /// A pull of `image` comes with a login, or without.
    pub(super) fn learn(&self, image: &str, login: Option<KeptLogin>) {
        // Names that are none fail in containerd.
        let Ok(reference) = image.parse::<Reference>() else { return };
        let key = key(&reference);
        let mut entries = self.entries.lock();
        let Some(login) = login else {
            if entries.images.remove(&key).is_some() {
                self.keep(&entries);
            }
            return;
        };
        entries.number += 1;
        let number = entries.number;
        let id = entries.images.get(&key).and_then(|entry| entry.id.clone());
        let (host, repository) = (reference.host().to_owned(), reference.repository().to_owned());
        let is_news = entries.images.get(&key).is_none_or(|entry| entry.login != login);
        entries.images.insert(key, Entry { number, host, repository, id, login });
        if entries.images.len() > IMAGES_MAX
            && let Some(oldest) = oldest(&entries)
        {
            entries.images.remove(&oldest);
        }
        if is_news {
            self.keep(&entries);
        }
    }

    /// The image service calls `image` so.
    pub(super) fn name(&self, image: &str, id: &str) {
        let Ok(reference) = image.parse::<Reference>() else { return };
        let mut entries = self.entries.lock();
        let Some(entry) = entries.images.get_mut(&key(&reference)) else { return };
        if entry.id.as_deref() != Some(id) {
            entry.id = Some(id.to_owned());
            self.keep(&entries);
        }
    }

    /// An image is removed, by its name or its id.
    pub(super) fn forget(&self, image: &str) {
        let name = image.parse::<Reference>().ok().map(|reference| key(&reference));
        let mut entries = self.entries.lock();
        let count = entries.images.len();
        entries
            .images
            .retain(|key, entry| Some(key) != name.as_ref() && entry.id.as_deref() != Some(image));
        if entries.images.len() != count {
            self.keep(&entries);
        }
    }

    /// A disk that refuses costs a restart its logins, not this pull.
    fn keep(&self, entries: &Entries) {
        if let Err(error) = write(&self.path, entries) {
            tracing::warn!(path = %self.path.display(), %error, "logins are not kept");
        }
    }
}

/// The image's full name, without the tag where there is a digest.
fn key(reference: &Reference) -> String {
    let name = format!("{}/{}", reference.host(), reference.repository());
    match reference.digest() {
        Some(digest) => format!("{name}@{digest}"),
        None => format!("{name}:{}", reference.object()),
    }
}

fn oldest(entries: &Entries) -> Option<String> {
    let oldest = entries.images.iter().min_by_key(|(_, entry)| entry.number);
    oldest.map(|(key, _)| key.clone())
}

fn server_host(server: &str) -> &str {
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    bare.split('/').next().unwrap_or(bare)
}

fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

fn read(path: &Path) -> io::Result<Entries> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::default()),
        metadata => metadata?,
    };
    if metadata.len() > FILE_LEN_MAX {
        let problem = format!("{} bytes, at most {FILE_LEN_MAX} are read", metadata.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    serde_json::from_slice(&fs::read(path)?).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let problem = format!("not understood at line {line}, column {column}");
        io::Error::new(io::ErrorKind::InvalidData, problem)
    })
}

/// Replaced as a whole; the old content is overwritten before its blocks are free.
fn write(path: &Path, entries: &Entries) -> io::Result<()> {
    let text = serde_json::to_vec(entries).map_err(io::Error::other)?;
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&text)?;
    file.sync_all()?;
    let old = OpenOptions::new().write(true).open(path);
    fs::rename(&fresh, path)?;
    if let Ok(old) = old {
        wipe(old)?;
    }
    Ok(())
}

fn wipe(mut file: File) -> io::Result<()> {
    let len = file.metadata()?.len();
    let zeros = [0; 4096];
    let mut left = len;
    while left > 0 {
        let count = left.min(zeros.len() as u64);
        file.write_all(zeros.get(..count as usize).unwrap_or_default())?;
        left -= count;
    }
    file.sync_data()
}
