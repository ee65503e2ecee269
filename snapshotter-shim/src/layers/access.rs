//! How registries are reached: the settings file and the environment, in the terms of the fetcher.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::RenameFlags;
use spanfs::image::ImagesOptions;
use spanfs_fetch::{
    CredentialLookup, CredentialSource, EngineOptions, PlanOptions, ProxyOptions, RegistryLimits,
    RegistryOptions, Secret,
};

use crate::config::{Mirror, ParallelPull, Settings};

/// What the settings file does not say: proxies, logins.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `HTTP_PROXY`.
    pub http_proxy: Option<String>,
    /// `HTTPS_PROXY`.
    pub https_proxy: Option<String>,
    /// `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// Docker's `config.json`; it need not exist.
    pub docker_config: Option<PathBuf>,
    /// Overlay mounts here keep their marks in `user.` attributes, as user namespaces want it.
    pub userxattr: bool,
    /// Further sources of logins, in their order.
    pub lookups: Vec<CredentialLookup>,
}

impl Environment {
    /// As `variable` tells.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            let lower = variable(&name.to_ascii_lowercase());
            variable(name).or(lower).filter(|value| !value.is_empty())
        };
        let docker = variable("DOCKER_CONFIG").map(PathBuf::from);
        let home = variable("HOME").map(|home| Path::new(&home).join(".docker"));
        Self {
            http_proxy: either("HTTP_PROXY"),
            https_proxy: either("HTTPS_PROXY"),
            no_proxy: either("NO_PROXY"),
            docker_config: docker.or(home).map(|directory| directory.join("config.json")),
            userxattr: false,
            lookups: Vec::new(),
        }
    }
}

/// Retries unless the settings file says otherwise.
const RETRIES_DEFAULT: u32 = 8;

/// What the fetcher is to be told. `hosts` is a directory with the mirrors of the settings file.
pub(super) fn images_options(
    settings: &Settings,
    environment: &Environment,
    hosts: &Path,
) -> ImagesOptions {
    let docker = environment.docker_config.clone().map(CredentialSource::DockerConfig);
    let lookups = environment.lookups.iter().cloned().map(CredentialSource::Lookup);
    let retry = settings.request_retry;
    let limits = RegistryLimits {
        dial: settings.connect_timeout,
        answer: settings.header_timeout,
        request: settings.request_timeout,
        // Whoever prepares a layer waits no longer.
        operation: settings.mount_timeout,
        tries_max: retry.retries_max.saturating_add(1),
        delay_first: retry.wait_min,
        delay_max: retry.wait_max,
    };
    let mut engine = EngineOptions::default();
    let blob = settings.blob_retry;
    engine.connect_timeout = settings.connect_timeout;
    let tries = blob.retries_max.saturating_add(1);
    engine.plan.retry.tries_max = match blob.retries_max < RETRIES_DEFAULT {
        true => tries,
        // The peer's default is over after 8 s, and readers get errors from a registry that only
        // restarts: unless told to hurry, the deadline ends it.
        false => tries.max(engine.plan.retry.tries_max),
    };
    engine.plan.retry.delay_first = blob.wait_min.max(DELAY_MIN);
    engine.plan.retry.delay_max = engine.plan.retry.delay_max.min(blob.wait_max);
    engine.plan.retry.deadline = engine.plan.retry.deadline.min(settings.blob_timeout);
    if let Some(parallel) = settings.pull_modes.parallel.as_ref().filter(|it| !it.is_fallback) {
        pull_whole(&mut engine.plan, parallel);
    }
    let registry = RegistryOptions {
        // The peer's order.
        credentials: docker.into_iter().chain(lookups).collect(),
        // The settings file's mirrors, then those that containerd pulls from.
        hosts_dirs: vec![hosts.to_owned(), CONTAINERD_HOSTS.into()],
        proxies: ProxyOptions {
            http: environment.http_proxy.clone().map(Secret::new),
            https: environment.https_proxy.clone().map(Secret::new),
            no_proxy: environment.no_proxy.clone(),
        },
        limits,
        ..RegistryOptions::default()
    };
    ImagesOptions { registry, engine }
}

/// Where containerd's documentation puts its registries' `hosts.toml`.
const CONTAINERD_HOSTS: &str = "/etc/containerd/certs.d";
/// Requests at once where the settings set no limit: 32 on 500 Mbit/s each fill any link.
const DOWNLOADS_PER_IMAGE: u32 = 16;
const CONNECTIONS_MAX: usize = 32;
/// A third more than what pulls hold at most: prefetch may use three quarters.
const PULL_BYTES_MAX: u64 = 96 << 20;

/// Nobody reads what is not there: pulls get all connections, as many as their limits say.
fn pull_whole(plan: &mut PlanOptions, parallel: &ParallelPull) {
    let of_image = parallel.downloads_per_image_max.unwrap_or(DOWNLOADS_PER_IMAGE);
    // Two images at once.
    let wanted = parallel.downloads_max.unwrap_or(of_image.saturating_mul(2));
    plan.connections_demand = 0;
    plan.connections_max = (wanted as usize).clamp(plan.connections_max, CONNECTIONS_MAX);
    plan.inflight_bytes_max = PULL_BYTES_MAX;
}

/// Retries without any pause would be an attack.
const DELAY_MIN: Duration = Duration::from_millis(10);

/// The mirrors of a registry as a `hosts.toml`; the registry itself comes last.
fn hosts_toml(mirrors: &[Mirror]) -> String {
    let mut text = String::new();
    for mirror in mirrors {
        // The peer takes https whatever the scheme says, unless it is told to be insecure.
        let rest = mirror.host.split_once("://").map_or(mirror.host.as_str(), |(_, rest)| rest);
        let local = ["localhost", "127.", "[::1]"].iter().any(|local| rest.starts_with(local));
        let scheme = if mirror.insecure || local { "http" } else { "https" };
        let url = toml::Value::String(format!("{scheme}://{rest}"));
        let has_path = rest.trim_end_matches('/').contains('/');
        // Writing to a text can't fail.
        let _ = writeln!(text, "[host.{url}]\ncapabilities = [\"pull\"]");
        if has_path {
            text.push_str("override_path = true\n");
        }
    }
    text
}

/// Write the mirrors of the settings file as the fetcher reads them, in place of older ones.
pub(super) fn write_hosts(
    directory: &Path,
    mirrors: &BTreeMap<String, Vec<Mirror>>,
) -> std::io::Result<()> {
    let fresh = directory.with_extension("new");
    remove(&fresh)?;
    std::fs::create_dir_all(&fresh)?;
    for (registry, mirrors) in mirrors {
        let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
        if registry.starts_with('.') || !registry.chars().all(is_name) {
            let problem = format!("resolver.host.{registry:?} is no registry's name");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, problem));
        }
        let of_registry = fresh.join(registry);
        std::fs::create_dir_all(&of_registry)?;
        std::fs::write(of_registry.join("hosts.toml"), hosts_toml(mirrors))?;
    }
    // Whoever reads meanwhile sees all of the one or of the other.
    if directory.exists() {
        let (cwd, exchange) = (rustix::fs::CWD, RenameFlags::EXCHANGE);
        rustix::fs::renameat_with(cwd, &fresh, cwd, directory, exchange)?;
        remove(&fresh)
    } else {
        std::fs::rename(fresh, directory)
    }
}

fn remove(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn mirrors_come_first_and_only_serve_content() {
        let mirror = |host: &str, insecure| Mirror {
            host: host.to_owned(),
            insecure,
            request_timeout: None,
        };
        let mirrors = [mirror("https://m.example", false), mirror("https://10.0.0.1:5000/x", true)];
        let text = hosts_toml(&mirrors);
        assert_eq!(
            text,
            "[host.\"https://m.example\"]\ncapabilities = [\"pull\"]\n\
             [host.\"http://10.0.0.1:5000/x\"]\ncapabilities = [\"pull\"]\noverride_path = true\n"
        );
        let directory = tempfile::tempdir().unwrap();
        let hosts = directory.path().join("hosts");
        let of = |name: &str| BTreeMap::from([(name.to_owned(), mirrors.to_vec())]);
        write_hosts(&hosts, &of("docker.io")).unwrap();
        write_hosts(&hosts, &of("r.example:5000")).unwrap();
        assert!(!hosts.join("docker.io").exists(), "older settings are gone");
        assert_eq!(std::fs::read_to_string(hosts.join("r.example:5000/hosts.toml")).unwrap(), text);
        assert!(write_hosts(&hosts, &of("../x")).is_err());
    }

    #[test]
    fn retries_of_blobs_are_as_configured() {
        let environment = Environment::of(|_| None);
        let tries = |text: &str| {
            let settings = Config::parse(text).unwrap().settings;
            images_options(&settings, &environment, Path::new("/none")).engine.plan.retry.tries_max
        };
        assert_eq!(tries("[blob]\nmax_retries = 2"), 3);
        assert_eq!(tries("[blob]\nmax_retries = 100"), 101);
        assert_eq!(tries(""), EngineOptions::default().plan.retry.tries_max);
    }

    #[test]
    fn the_environment_is_read_in_both_spellings() {
        let variable = |name: &str| match name {
            "https_proxy" => Some("http://p:1".to_owned()),
            "HOME" => Some("/root".to_owned()),
            _ => None,
        };
        let environment = Environment::of(variable);
        assert_eq!(environment.https_proxy.as_deref(), Some("http://p:1"));
        assert_eq!(environment.docker_config, Some("/root/.docker/config.json".into()));
    }
}
