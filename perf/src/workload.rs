//! What is started, and how one sees that it is ready.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Workloads of the images that `perf/images` makes.
const BUILT_IN: &str = include_str!("../workloads.toml");

/// An image and what is done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) image: ImageName,
    /// Program and arguments; the image's own where empty.
    pub(crate) command: Vec<String>,
    pub(crate) ready: Ready,
    /// Done inside the container when it is ready, so that no cost hides behind that moment.
    pub(crate) steady: Vec<String>,
    /// From the start of the pull until it has to be ready; the steady phase gets as much again.
    pub(crate) timeout: Duration,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageName {
    /// A layout that `perf/images/build` made.
    Built(String),
    /// `[HOST/]NAME[:TAG]`, or `oci:DIR[:TAG]`.
    Reference(String),
}

/// When a container counts as ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// A line of its output matches.
    Log(String),
    /// A port of loopback takes connections.
    Port(u16),
    /// This path of a port of loopback is answered with 200.
    Http(u16, String),
    /// It ends with this status.
    Exit(i32),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    workload: Vec<RawWorkload>,
}

/// A workload as a file or the command line gives it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawWorkload {
    pub(crate) name: String,
    pub(crate) image: String,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) ready: RawReady,
    #[serde(default)]
    pub(crate) steady: Vec<String>,
    pub(crate) timeout_seconds: Option<u64>,
    /// Large, so only run when it is named.
    #[serde(default)]
    pub(crate) opt_in: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawReady {
    pub(crate) log: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) http: Option<String>,
    pub(crate) exit: Option<i32>,
}

const TIMEOUT_DEFAULT: u64 = 120;

impl RawWorkload {
    pub(crate) fn resolve(self) -> Result<Workload> {
        let RawReady { log, port, http, exit } = self.ready;
        let http = http.as_deref().map(http_target).transpose();
        let http = http.with_context(|| format!("workload {}", self.name))?;
        let mut conditions = log.map(Ready::Log).into_iter().collect::<Vec<_>>();
        conditions.extend(port.map(Ready::Port));
        conditions.extend(http.map(|(port, path)| Ready::Http(port, path)));
        conditions.extend(exit.map(Ready::Exit));
        ensure!(
            conditions.len() <= 1,
            "workload {}: one of log, port, http and exit says when it is ready, not {}",
            self.name,
            conditions.len()
        );
        // A program that is to end by itself is the simplest workload.
        let ready = conditions.pop().unwrap_or(Ready::Exit(0));
        if let Ready::Log(pattern) = &ready {
            regex::Regex::new(pattern)
                .with_context(|| format!("workload {}: the pattern of its log", self.name))?;
        }
        let is_reference = self.image.contains(['/', ':']);
        Ok(Workload {
            name: self.name,
            image: match is_reference {
                true => ImageName::Reference(self.image),
                false => ImageName::Built(self.image),
            },
            command: self.command,
            ready,
            steady: self.steady,
            timeout: Duration::from_secs(self.timeout_seconds.unwrap_or(TIMEOUT_DEFAULT)),
        })
    }
}

/// `:PORT/PATH` or `http://localhost:PORT/PATH`.
fn http_target(text: &str) -> Result<(u16, String)> {
    let rest = text.strip_prefix("http://localhost").unwrap_or(text);
    let target = rest.strip_prefix(':').map(|rest| rest.split_once('/').unwrap_or((rest, "")));
    match target.and_then(|(port, path)| Some((port.parse().ok()?, format!("/{path}")))) {
        Some(target) => Ok(target),
        None => bail!("expected :PORT/PATH or http://localhost:PORT/PATH, found {text:?}"),
    }
}

/// The workloads of a file, or the built-in ones: those named, or all that are not opt-in.
pub(crate) fn load(file: Option<&Path>, names: &[String]) -> Result<Vec<Workload>> {
    let (text, source) = match file {
        Some(path) => (
            std::fs::read_to_string(path)
                .with_context(|| format!("reading workloads from {}", path.display()))?,
            path.display().to_string(),
        ),
        None => (BUILT_IN.to_owned(), "the built-in workloads".to_owned()),
    };
    let RawFile { workload: all } =
        toml::from_str(&text).with_context(|| format!("reading {source}"))?;
    let known: Vec<_> = all.iter().map(|raw| raw.name.clone()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        bail!("unknown workload {unknown}; {source} has {}", known.join(", "));
    }
    let wanted = |raw: &RawWorkload| match names {
        [] => !raw.opt_in,
        names => names.contains(&raw.name),
    };
    let chosen = all.into_iter().filter(wanted).map(RawWorkload::resolve);
    let chosen = chosen.collect::<Result<Vec<_>>>().with_context(|| format!("reading {source}"))?;
    ensure!(!chosen.is_empty(), "{source} has no workload");
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_workloads_are_read() {
        let all = load(None, &[]).unwrap();
        assert!(all.iter().any(|workload| workload.name == "redis"));
        assert!(!all.iter().any(|workload| workload.name == "python-cuda"), "opt-in");
        assert_eq!(load(None, &["python-cuda".to_owned()]).unwrap().len(), 1);
        let error = load(None, &["rediss".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("unknown workload rediss"), "{error}");
    }

    #[test]
    fn conditions_are_checked() {
        let check = |ready: &str, expected: Result<Ready, &str>| {
            let text = format!("name = \"x\"\nimage = \"tiny\"\nready = {ready}");
            let found = toml::from_str::<RawWorkload>(&text).unwrap().resolve();
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.ready, expected),
                (Err(error), Err(expected)) => {
                    let error = format!("{error:#}");
                    assert!(error.contains(expected), "{error}");
                }
                (found, expected) => panic!("{found:?}, expected {expected:?}"),
            }
        };
        check("{ port = 80 }", Ok(Ready::Port(80)));
        check("{}", Ok(Ready::Exit(0)));
        check("{ http = \":80/x\" }", Ok(Ready::Http(80, "/x".to_owned())));
        check("{ http = \"http://localhost:80\" }", Ok(Ready::Http(80, "/".to_owned())));
        check("{ http = \"80\" }", Err("expected :PORT/PATH"));
        check("{ port = 80, exit = 0 }", Err("not 2"));
        check("{ log = \"(\" }", Err("pattern"));
    }
}
