//! What the command line means on this machine: complete, plain values.

use std::path::PathBuf;

use rustix::process::geteuid;
use spanfs_fetch::{Login, Secret};

use crate::arguments::{Access, CacheDir, Keep};
use crate::failure::{Code, Failure};

/// Bytes that layers may take on disk: what a few large images need.
const CACHE_BYTES_MAX: u64 = 20 << 30;
/// Bytes in flight and inflated but not written yet: dozens of spans of 4 MiB on all cores.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Below this, one large span of its both forms would no longer fit.
const MEMORY_BYTES_MIN: u64 = 32 << 20;

/// Facts about machine and user that defaults hang on.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) is_root: bool,
    pub(crate) home: Option<PathBuf>,
    pub(crate) cache_home: Option<PathBuf>,
    pub(crate) docker_config: Option<PathBuf>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) http_proxy: Option<String>,
    pub(crate) https_proxy: Option<String>,
    pub(crate) no_proxy: Option<String>,
    pub(crate) threads: usize,
}

impl Facts {
    /// Of the running process.
    pub(crate) fn gather() -> Self {
        let path = |name| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
        let text = |name: &str| std::env::var(name).ok().filter(|it| !it.is_empty());
        // Both spellings are in use.
        let either = |name: &str| text(name).or_else(|| text(&name.to_lowercase()));
        Self {
            is_root: geteuid().is_root(),
            home: path("HOME"),
            cache_home: path("XDG_CACHE_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            username: text("SPANFS_USERNAME"),
            password: text("SPANFS_PASSWORD").map(Secret::new),
            http_proxy: either("HTTP_PROXY"),
            https_proxy: either("HTTPS_PROXY"),
            no_proxy: either("NO_PROXY"),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Where layers are kept, and what may be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keeping {
    pub(crate) cache_dir: PathBuf,
    pub(crate) cache_bytes_max: u64,
    pub(crate) memory_bytes_max: u64,
    pub(crate) background: Background,
    pub(crate) threads: usize,
}

/// What is fetched that nobody reads yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Background {
    /// Nothing.
    Off,
    /// All, at most so many bytes per second.
    Complete {
        /// `None`: as fast as readers leave room.
        bytes_per_second: Option<u64>,
    },
}

pub(crate) fn keeping(keep: &Keep, facts: &Facts) -> Result<Keeping, Failure> {
    let memory_bytes_max = keep.memory_limit.map_or(MEMORY_BYTES_MAX, |bytes| bytes.0);
    if memory_bytes_max < MEMORY_BYTES_MIN {
        let reason = format!("at least 32M is needed, found {memory_bytes_max} bytes");
        return Err(Failure::usage("reading --memory-limit", reason));
    }
    let background = match (keep.no_background, keep.background_bandwidth) {
        (true, _) => Background::Off,
        (false, rate) => Background::Complete { bytes_per_second: rate.map(|rate| rate.0) },
    };
    Ok(Keeping {
        cache_dir: cache_dir(&keep.cache, facts)?,
        cache_bytes_max: keep.cache_size.map_or(CACHE_BYTES_MAX, |bytes| bytes.0),
        memory_bytes_max,
        background,
        threads: facts.threads,
    })
}

pub(crate) fn cache_dir(chosen: &CacheDir, facts: &Facts) -> Result<PathBuf, Failure> {
    if let Some(chosen) = &chosen.cache_dir {
        return Ok(chosen.clone());
    }
    if facts.is_root {
        return Ok("/var/cache/spanfs".into());
    }
    let home = || facts.home.as_ref().map(|home| home.join(".cache"));
    facts.cache_home.clone().or_else(home).map(|cache| cache.join("spanfs")).ok_or_else(|| {
        Failure::usage("choosing a cache directory", "neither HOME nor XDG_CACHE_HOME is set")
            .advise("give one with --cache-dir")
    })
}

/// How registries are spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reaching {
    pub(crate) plain_http: bool,
    pub(crate) hosts_dirs: Vec<PathBuf>,
    /// What wins over the configuration file.
    pub(crate) login: Option<Login>,
    pub(crate) docker_config: Option<PathBuf>,
    pub(crate) http_proxy: Option<String>,
    pub(crate) https_proxy: Option<String>,
    pub(crate) no_proxy: Option<String>,
}

pub(crate) fn reaching(access: &Access, facts: &Facts) -> Result<Reaching, Failure> {
    let login = match (&facts.username, &facts.password) {
        (Some(username), Some(password)) => {
            Some(Login::Password { username: username.clone(), password: password.clone() })
        }
        (None, None) => None,
        _ => {
            let attempted = "reading credentials from the environment";
            let reason = "only one of SPANFS_USERNAME and SPANFS_PASSWORD is set";
            return Err(Failure::usage(attempted, reason));
        }
    };
    if let Some(directory) = access.hosts_dir.as_ref().filter(|directory| !directory.is_dir()) {
        let attempted = format!("reading the hosts directory {}", directory.display());
        return Err(Failure::new(Code::Usage, attempted, "it is no directory"));
    }
    let docker_home = || facts.home.as_ref().map(|home| home.join(".docker"));
    let docker_config = facts.docker_config.clone().or_else(docker_home);
    Ok(Reaching {
        plain_http: access.plain_http,
        hosts_dirs: access.hosts_dir.iter().cloned().collect(),
        login,
        docker_config: docker_config.map(|directory| directory.join("config.json")),
        http_proxy: facts.http_proxy.clone(),
        https_proxy: facts.https_proxy.clone(),
        no_proxy: facts.no_proxy.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity::{Bytes, Rate};

    fn facts(is_root: bool) -> Facts {
        Facts {
            is_root,
            home: Some("/home/u".into()),
            cache_home: None,
            docker_config: None,
            username: None,
            password: None,
            http_proxy: None,
            https_proxy: None,
            no_proxy: None,
            threads: 2,
        }
    }

    fn keep() -> Keep {
        Keep {
            cache: CacheDir { cache_dir: None },
            cache_size: None,
            memory_limit: None,
            no_background: false,
            background_bandwidth: None,
        }
    }

    #[test]
    fn defaults_hang_on_the_user() {
        let dir = |facts: &Facts| keeping(&keep(), facts).unwrap().cache_dir;
        assert_eq!(dir(&facts(true)), PathBuf::from("/var/cache/spanfs"));
        assert_eq!(dir(&facts(false)), PathBuf::from("/home/u/.cache/spanfs"));
        let xdg = Facts { cache_home: Some("/x".into()), ..facts(false) };
        assert_eq!(dir(&xdg), PathBuf::from("/x/spanfs"));
        let homeless = Facts { home: None, ..facts(false) };
        assert_eq!(keeping(&keep(), &homeless).unwrap_err().code(), Code::Usage);
    }

    #[test]
    fn limits() {
        let tiny = Keep { memory_limit: Some(Bytes(1)), ..keep() };
        assert_eq!(keeping(&tiny, &facts(true)).unwrap_err().code(), Code::Usage);
        let capped = Keep { background_bandwidth: Some(Rate(5)), ..keep() };
        let found = keeping(&capped, &facts(true)).unwrap().background;
        assert_eq!(found, Background::Complete { bytes_per_second: Some(5) });
    }

    #[test]
    fn half_a_login_is_refused() {
        let access = Access { plain_http: false, hosts_dir: None };
        let half = Facts { username: Some("u".into()), ..facts(true) };
        assert_eq!(reaching(&access, &half).unwrap_err().code(), Code::Usage);
        let whole = Facts { password: Some(Secret::new("open sesame")), ..half };
        assert!(!format!("{whole:?}").contains("sesame"));
        let login = reaching(&access, &whole).unwrap().login;
        let password = Secret::new("open sesame");
        assert_eq!(login, Some(Login::Password { username: "u".into(), password }));
    }
}
