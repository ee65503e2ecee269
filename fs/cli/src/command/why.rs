//! `spanfs why`: for each layer of an image whether it comes lazily to this node, and why.
//!
//! What would happen follows from the image, its index and the snapshotter's settings, by the same
//! decision that the snapshotter makes; what has happened stands in the notes beside its snapshots, and
//! what was left to containerd in its debug pages.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use spanfs::image::decide::{Decision, Facts as LayerFacts, Parallel, decide};
use spanfs::image::{Discovery, Search};
use spanfs_layer::Digest;
use toml_edit::{DocumentMut, Item};

use super::doctor::PROGRAMS;
use crate::arguments::Why;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::quantity::Bytes;
use crate::session::Reached;
use crate::settings::{self, Facts};

pub(crate) fn why(arguments: &Why, output: &Output) -> Result<(), Failure> {
    let reaching = settings::reaching(&arguments.image.access, &Facts::gather())?;
    let modes = Modes::of_node(&arguments.debug_socket)?;
    let reached = Reached::find(&arguments.image, &reaching, None)?;
    let search = Search { digest: None, annotation: modes.v2, referrers: modes.v1 };
    let discovery = reached.images.discover_by(&reached.image, &search);
    let history = History::of_node(&arguments.root, &arguments.debug_socket)?;
    let rows = reached.image.layers().map(|(layer, _)| {
        let ztoc = discovery.index().and_then(|index| index.ztoc(&layer.digest));
        let facts = LayerFacts {
            is_indexed: discovery.index().is_some(),
            has_ztoc: ztoc.is_some(),
            size: layer.size,
            lazy_len_min: modes.lazy_len_min,
        };
        let decision = decide(modes.parallel, facts);
        json!({
            "layer": layer.digest,
            "size": layer.size,
            "comes": comes(decision),
            "because": because(decision, &modes, &discovery, layer.size),
            "here": history.of(&layer.digest),
        })
    });
    let report = json!({
        "image": reached.name,
        "manifest": reached.image.documents.descriptor.digest,
        "settings": modes.source,
        "index": discovery_of(&discovery, &modes),
        "layers": rows.collect::<Vec<_>>(),
    });
    if output.json {
        output.json(&report)
    } else {
        show(&report, output)
    }
    Ok(())
}

fn show(report: &Value, output: &Output) {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    for name in ["image", "manifest", "index", "settings"] {
        output.line(format_args!("{name:<9} {}", text(&report[name])));
    }
    for layer in report["layers"].as_array().into_iter().flatten() {
        let digest = text(&layer["layer"]);
        output.line(format_args!(
            "{:.19}  {:>9}  {:<10}  {}; {}",
            digest,
            Bytes(layer["size"].as_u64().unwrap_or_default()).to_string(),
            text(&layer["comes"]),
            text(&layer["because"]),
            text(&layer["here"]),
        ));
    }
}

fn comes(decision: Decision) -> &'static str {
    match decision {
        Decision::Lazy => "lazy",
        Decision::Whole { .. } => "whole",
        Decision::Parallel => "parallel",
        Decision::Defer => "containerd",
    }
}

fn because(decision: Decision, modes: &Modes, discovery: &Discovery, size: u64) -> String {
    match decision {
        Decision::Lazy => "the index has a zTOC for it".to_owned(),
        Decision::Whole { .. } if size < modes.lazy_len_min => {
            format!("it is smaller than min_layer_size ({})", Bytes(modes.lazy_len_min))
        }
        Decision::Whole { .. } => {
            "the index has no zTOC for it: too small when it was indexed, or not indexable"
                .to_owned()
        }
        Decision::Parallel if modes.parallel == Parallel::Always => {
            "parallel_pull_unpack is enabled, so nothing is lazy".to_owned()
        }
        Decision::Parallel => {
            format!("{}, and parallel pull is the fall-back", none(discovery, modes))
        }
        Decision::Defer => none(discovery, modes),
    }
}

/// Why there is no index, with the setting that may be the reason.
fn none(discovery: &Discovery, modes: &Modes) -> String {
    match discovery {
        Discovery::Found { .. } => "the image has an index".to_owned(),
        Discovery::None { reason } if !modes.v1 => {
            format!(
                "{reason}, and pull_modes.soci_v1 is off, so that no pushed index is looked for"
            )
        }
        Discovery::None { reason } => reason.clone(),
    }
}

fn discovery_of(discovery: &Discovery, modes: &Modes) -> String {
    match discovery {
        Discovery::Found { digest, index, by } => {
            format!("{digest} ({}, found by {by})", format!("{:?}", index.version).to_lowercase())
        }
        Discovery::None { .. } => format!("none: {}", none(discovery, modes)),
    }
}

/// What a snapshot's note says of its layer; the snapshotter writes more into it.
#[derive(Deserialize)]
struct Note {
    layer: Digest,
    /// Notes of older versions don't say.
    how: Option<How>,
}

#[derive(Deserialize)]
struct How {
    outcome: String,
    reason: String,
}

/// A decision of the running snapshotter.
#[derive(Deserialize)]
struct Decided {
    layer: Digest,
    outcome: String,
    reason: String,
}

/// What has become of layers on this node.
struct History {
    /// Notes of all snapshots, each with its id.
    notes: Vec<(String, Note)>,
    /// What was decided lately; why nobody says, if nobody does.
    decisions: Result<Vec<Decided>, String>,
}

impl History {
    fn of_node(root: &Path, debug_socket: &Path) -> Result<Self, Failure> {
        let decisions = ask(debug_socket, "/debug/decisions")
            .and_then(|text| serde_json::from_str(&text).map_err(io::Error::other))
            .map_err(|error| format!("{}: {error}", debug_socket.display()));
        Ok(Self { notes: notes(root)?, decisions })
    }

    fn of(&self, layer: &Digest) -> String {
        if let Some((id, note)) = self.notes.iter().find(|(_, note)| note.layer == *layer) {
            return match &note.how {
                Some(How { outcome, reason }) => {
                    format!("snapshot {id} shows it, {outcome}: {reason}")
                }
                None => format!("snapshot {id} shows it"),
            };
        }
        let decided = match &self.decisions {
            Ok(decisions) => decisions.iter().rev().find(|decided| decided.layer == *layer),
            Err(error) => {
                return format!(
                    "no snapshot of ours shows it, and the snapshotter is silent: {error}"
                );
            }
        };
        match decided {
            Some(Decided { outcome, reason, .. }) => {
                format!("{outcome} when it was pulled: {reason}")
            }
            None => "no snapshot of ours shows it: not pulled lately".to_owned(),
        }
    }
}

/// A page is a few hundred bytes for each of the latest layers.
const PAGE_LEN_MAX: u64 = 16 << 20;
/// The snapshotter answers from memory.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// A debug page of the running snapshotter.
fn ask(socket: &Path, page: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
    write!(stream, "GET {page} HTTP/1.1\r\nhost: spanfs\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.take(PAGE_LEN_MAX).read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("{page}: answered {status:?}"))),
    }
}

/// None where no snapshotter has ever been.
fn notes(root: &Path) -> Result<Vec<(String, Note)>, Failure> {
    let path = root.join("snapshotter/snapshots");
    let failed = |error: &io::Error| Failure::io(format!("reading {}", path.display()), error);
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| failed(&error).advise("run it as root"))?,
    };
    let mut notes = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed(&error))?;
        // A snapshot without one holds files of its own; one that goes just now is none.
        let Ok(text) = fs::read_to_string(entry.path().join("layer.json")) else { continue };
        if let Ok(note) = serde_json::from_str(&text) {
            notes.push((entry.file_name().to_string_lossy().into_owned(), note));
        }
    }
    Ok(notes)
}

/// What the snapshotter's settings say of pulls.
struct Modes {
    v1: bool,
    v2: bool,
    parallel: Parallel,
    lazy_len_min: u64,
    /// Where this comes from.
    source: String,
}

impl Modes {
    /// Those in force, if the snapshotter runs; else as the installed one understands its settings.
    fn of_node(debug_socket: &Path) -> Result<Self, Failure> {
        if let Some(modes) = Self::in_force(debug_socket)? {
            return Ok(modes);
        }
        for program in PROGRAMS {
            let dump = Command::new(program).args(["config", "dump"]).stdin(Stdio::null()).output();
            let Ok(dump) = dump else { continue };
            let attempted = || format!("asking {program} for its settings");
            if !dump.status.success() {
                let said = String::from_utf8_lossy(&dump.stderr).trim().to_owned();
                return Err(Failure::new(Code::Failed, attempted(), said));
            }
            let text = String::from_utf8_lossy(&dump.stdout);
            let settings = text
                .parse()
                .map_err(|error| Failure::new(Code::Failed, attempted(), format!("{error}")))?;
            let source = format!("those that {program} would start with: it does not run");
            return Ok(Self::of(&settings, source));
        }
        let source = "the defaults: no snapshotter is on PATH".to_owned();
        Ok(Self::of(&DocumentMut::new(), source))
    }

    /// What the running snapshotter goes by; none where none can be asked.
    fn in_force(debug_socket: &Path) -> Result<Option<Self>, Failure> {
        let text = match ask(debug_socket, "/debug/config") {
            Ok(text) => text,
            Err(error) => {
                let socket = debug_socket.display();
                tracing::debug!(%socket, %error, "the snapshotter does not tell its settings");
                return Ok(None);
            }
        };
        let source = format!("in force, as {} says", debug_socket.display());
        let settings = text.parse().map_err(|error: toml_edit::TomlError| {
            Failure::new(Code::Failed, "reading the settings in force", error.to_string())
        })?;
        Ok(Some(Self::of(&settings, source)))
    }

    fn of(settings: &DocumentMut, source: String) -> Self {
        let find =
            |keys: &[&str]| keys.iter().try_fold(settings.as_item(), |item, key| item.get(key));
        let flag = |keys: &[&str], default| find(keys).and_then(Item::as_bool).unwrap_or(default);
        let parallel = ["pull_modes", "parallel_pull_unpack"];
        let always = flag(&[&parallel[..], &["enable"]].concat(), false);
        let fallback = [&parallel[..], &["experimental_parallel_pull_as_fallback"]].concat();
        let size = find(&["snapshotter", "min_layer_size"]).and_then(Item::as_integer);
        Self {
            v1: flag(&["pull_modes", "soci_v1", "enable"], false),
            v2: flag(&["pull_modes", "soci_v2", "enable"], true),
            parallel: match (always, flag(&fallback, false)) {
                (true, _) => Parallel::Always,
                (false, true) => Parallel::Fallback,
                (false, false) => Parallel::Off,
            },
            lazy_len_min: size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A snapshotter that is asked once, for `page`.
    fn answering(socket: &Path, page: &str, body: &str) -> std::thread::JoinHandle<()> {
        let _none = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let asked = format!("GET {page} HTTP/1.1\r\n");
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 200];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(asked.as_bytes()));
            stream.write_all(text.as_bytes()).unwrap();
        })
    }

    #[test]
    fn history_comes_from_notes_and_from_the_snapshotter() {
        let node = tempfile::tempdir().unwrap();
        let [noted, older, left] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        for (id, layer, how) in [
            (7, noted, r#","how":{"outcome":"whole","reason":"no ztoc for layer"}"#),
            (8, older, ""),
        ] {
            let directory = node.path().join(format!("snapshotter/snapshots/{id}"));
            fs::create_dir_all(&directory).unwrap();
            let note = format!(r#"{{"format":1,"layer":"{layer}"{how}}}"#);
            fs::write(directory.join("layer.json"), note).unwrap();
        }
        let socket = node.path().join("debug.sock");
        let silent = History::of_node(node.path(), &socket).unwrap();
        assert!(silent.of(&left).contains("the snapshotter is silent"), "{}", silent.of(&left));
        let body = format!(
            r#"[{{"layer":"{left}","outcome":"deferred","reason":"no index","image":"x"}}]"#
        );
        let answer = answering(&socket, "/debug/decisions", &body);
        let history = History::of_node(node.path(), &socket).unwrap();
        answer.join().unwrap();
        assert_eq!(history.of(&noted), "snapshot 7 shows it, whole: no ztoc for layer");
        assert_eq!(history.of(&older), "snapshot 8 shows it");
        assert_eq!(history.of(&left), "deferred when it was pulled: no index");
        assert!(history.of(&Digest::of(b"d")).contains("not pulled lately"));
    }

    /// Settings that were reloaded, or a file that was changed since the start.
    #[test]
    fn settings_in_force_count_before_the_file() {
        let node = tempfile::tempdir().unwrap();
        let socket = node.path().join("debug.sock");
        assert!(Modes::in_force(&socket).unwrap().is_none(), "nobody is there");
        let body = "[pull_modes]\n\n  [pull_modes.soci_v1]\n    enable = true\n";
        let answer = answering(&socket, "/debug/config", body);
        let modes = Modes::of_node(&socket).unwrap();
        answer.join().unwrap();
        assert!(modes.v1 && modes.source.starts_with("in force"), "{}", modes.source);
        let answer = answering(&socket, "/debug/config", "[");
        let failure = Modes::of_node(&socket).err().unwrap().to_string();
        answer.join().unwrap();
        assert!(failure.contains("reading the settings in force"), "{failure}");
    }

    #[test]
    fn settings_decide() {
        let modes = |text: &str| Modes::of(&text.parse().unwrap(), String::new());
        let found = modes("");
        assert!(found.v2 && !found.v1 && found.parallel == Parallel::Off);
        let table = "[pull_modes.parallel_pull_unpack]\nenable = true\n";
        assert_eq!(modes(table).parallel, Parallel::Always);
        let fallback = table.replace("enable", "experimental_parallel_pull_as_fallback");
        assert_eq!(modes(&fallback).parallel, Parallel::Fallback);
        assert_eq!(modes("[snapshotter]\nmin_layer_size = 7\n").lazy_len_min, 7);
        let reason = Discovery::None { reason: "the image names no index".to_owned() };
        assert!(none(&reason, &found).contains("pull_modes.soci_v1 is off"));
    }
}
