//! containerd's configuration: what lazy snapshots need of it, and the known ways to get it wrong.
//!
//! Pure but for [`Config::read`]. Tables differ by the file's `version`, what is needed by containerd's
//! release: up to 1.x and in 2.0, CRI must be told to pass labels on; from 2.1 on it pulls by the
//! transfer service, which wants an `unpack_config` for the snapshotter and an export of the plugin.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use toml_edit::{DocumentMut, Item, Value};

const PROXY: &str = "proxy_plugins";
const CRI_1: &str = "io.containerd.grpc.v1.cri";
const CRI_2: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
const ANNOTATIONS: &str = "enable_remote_snapshot_annotations";
/// A few pages.
const LEN_MAX: u64 = 4 << 20;

/// `1.7` or `2.3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release {
    major: u32,
    minor: u32,
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.trim_start_matches('v').split('.').map(str::parse);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self { major, minor }),
            _ => Err(format!("expected a release such as 2.1, found {text:?}")),
        }
    }
}

/// The release of the containerd on PATH.
pub(super) fn installed_release() -> Option<Release> {
    let output = Command::new("containerd").arg("--version").stdin(Stdio::null()).output().ok()?;
    // `containerd REPOSITORY VERSION REVISION`.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.split_whitespace().find_map(|word| word.trim_start_matches('v').parse().ok())
}

/// What the configuration should say.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Name of the plugin.
    pub(super) snapshotter: String,
    /// Where our daemon listens.
    pub(super) socket: PathBuf,
    /// Its state directory.
    pub(super) root: PathBuf,
    /// Of containerd, if it is known.
    pub(super) release: Option<Release>,
}

/// Where a value is: table, table, ..., key.
pub(super) type Keys = Vec<String>;

/// A change that mends a fault.
#[derive(Clone, Debug)]
pub(super) enum Fix {
    /// Give a key a value.
    Set(Keys, Value),
    /// Add a table to the transfer service's list.
    Unpack(String),
}

/// Something that is wrong.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) file: PathBuf,
    /// Without mending it nothing is lazy.
    pub(super) is_grave: bool,
    pub(super) found: String,
    pub(super) advice: String,
    /// None where somebody has to decide.
    pub(super) fix: Option<Fix>,
}

/// containerd's configuration: the file, and those that it imports.
#[derive(Debug)]
pub(super) struct Config {
    files: Vec<(PathBuf, DocumentMut)>,
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let main = document(path)?;
        let mut files = vec![(path.to_owned(), main)];
        let imports = files[0].1.get("imports").and_then(Item::as_array).cloned();
        for pattern in imports.iter().flatten().filter_map(Value::as_str) {
            for path in matching(path.parent().unwrap_or(Path::new("/")), pattern) {
                let document = document(&path)?;
                files.push((path, document));
            }
        }
        Ok(Self { files })
    }

    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        Self { files: vec![("config.toml".into(), text.parse().unwrap())] }
    }

    /// The file that decides on a table: the last that has it, as imports replace whole plugins.
    fn deciding(&self, plugin: &[&str]) -> &(PathBuf, DocumentMut) {
        let has = |(_, document): &&(PathBuf, DocumentMut)| find(document, plugin).is_some();
        self.files.iter().rev().find(has).unwrap_or(&self.files[0])
    }

    /// What is wrong for `wanted`; nothing if all is well.
    pub(super) fn check(&self, wanted: &Wanted) -> Vec<Fault> {
        let mut check = Check { config: self, wanted, faults: Vec::new() };
        if check.version() {
            check.proxy();
            check.cri();
            check.unpack();
            check.strays();
        }
        check.faults
    }

    /// The file's `version`; none in a file that says nothing.
    fn version(&self) -> Option<i64> {
        self.files[0].1.get("version").and_then(Item::as_integer)
    }
}

fn document(path: &Path) -> Result<DocumentMut, String> {
    let text = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
        Ok(meta) if meta.len() > LEN_MAX => return Err(format!("{}: too long", path.display())),
        Ok(_) => fs::read_to_string(path),
    };
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    text.parse().map_err(|error| format!("{}: {error}", path.display()))
}

/// Files that a pattern of `imports` means; stars may stand in the last part.
fn matching(directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = directory.join(pattern);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((before, behind)) = name.split_once('*') else { return vec![path] };
    let parent = path.parent().unwrap_or(Path::new("/"));
    let entries = parent.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let is_meant = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.len() >= before.len() + behind.len()
            && name.starts_with(before)
            && name.ends_with(behind)
    };
    let mut found: Vec<_> = entries.filter(is_meant).collect();
    found.sort();
    found
}

/// A value in a document.
pub(super) fn find<'d>(document: &'d DocumentMut, keys: &[&str]) -> Option<&'d Item> {
    keys.iter().try_fold(document.as_item(), |item, key| item.get(key))
}

/// Keys as they stand in a file: quoted where they have dots.
pub(super) fn shown(keys: &[impl AsRef<str>]) -> String {
    let quoted = |key: &str| match key.contains('.') {
        true => format!("\"{key}\""),
        false => key.to_owned(),
    };
    keys.iter().map(|key| quoted(key.as_ref())).collect::<Vec<_>>().join(".")
}

struct Check<'c> {
    config: &'c Config,
    wanted: &'c Wanted,
    faults: Vec<Fault>,
}

impl Check<'_> {
    /// Whether the file is of a version that we know.
    fn version(&mut self) -> bool {
        let (file, document) = &self.config.files[0];
        match self.config.version() {
            Some(2..=4) => return true,
            None if document.iter().next().is_none() => {
                let found =
                    "it is empty: containerd knows no other snapshotters than its own".to_owned();
                let advice = "let it say what is below".to_owned();
                let version = Value::from(if self.is_2() { 3 } else { 2 });
                let fix = Some(Fix::Set(vec!["version".to_owned()], version));
                let file = file.clone();
                self.faults.push(Fault { file, is_grave: true, found, advice, fix });
                return true;
            }
            _ => {}
        }
        let found = match self.config.version() {
            None => "it has no version, so containerd reads it in the form of 2017".to_owned(),
            Some(version) => format!("version {version} is not known here"),
        };
        let advice = "containerd config migrate prints it in today's form".to_owned();
        let fault = Fault { file: file.clone(), is_grave: true, found, advice, fix: None };
        self.faults.push(fault);
        false
    }

    /// Whether containerd is of release 2.
    fn is_2(&self) -> bool {
        match (self.wanted.release, self.config.version()) {
            (Some(release), _) => release.major >= 2,
            (None, version) => version.is_some_and(|version| version > 2),
        }
    }

    /// Whether CRI pulls by the transfer service unless it is told otherwise.
    fn has_transfer(&self) -> bool {
        self.is_2() && self.wanted.release.is_none_or(|it| it >= Release { major: 2, minor: 1 })
    }

    /// The table of CRI's images.
    fn cri_table(&self) -> Vec<&'static str> {
        match self.config.version() {
            Some(3..) => vec!["plugins", CRI_2],
            None if self.is_2() => vec!["plugins", CRI_2],
            _ => vec!["plugins", CRI_1, "containerd"],
        }
    }

    fn value(&self, keys: &[&str]) -> Option<&Item> {
        find(&self.config.deciding(&keys[..2.min(keys.len())]).1, keys)
    }

    /// A fault about a key, with a change that mends it.
    fn key(&mut self, is_grave: bool, keys: &[&str], value: impl Into<Value>, why: &str) {
        let value = value.into();
        let found = match self.value(keys) {
            None => format!("{} is not set: {why}", shown(keys)),
            Some(other) => format!("{} is {}: {why}", shown(keys), other.to_string().trim()),
        };
        let advice = format!("set {} = {value}", shown(keys));
        let file = self.config.deciding(&keys[..2.min(keys.len())]).0.clone();
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        // What other files import is not ours to change.
        let fix = (file == self.config.files[0].0).then_some(Fix::Set(keys, value));
        self.faults.push(Fault { file, is_grave, found, advice, fix });
    }

    fn proxy(&mut self) {
        let name = self.wanted.snapshotter.clone();
        let text =
            |it: &Self, keys: &[&str]| it.value(keys).and_then(Item::as_str).map(str::to_owned);
        let kind = [PROXY, &name, "type"];
        if text(self, &kind).as_deref() != Some("snapshot") {
            self.key(true, &kind, "snapshot", "containerd does not know the snapshotter");
        }
        let (address, socket) = ([PROXY, &name, "address"], self.wanted.socket.clone());
        let socket = socket.to_string_lossy();
        match text(self, &address) {
            Some(found) if found == socket => {}
            Some(found) if found.starts_with("unix://") => {
                self.key(true, &address, &*socket, "containerd puts unix:// in front by itself");
            }
            _ => self.key(true, &address, &*socket, "the snapshotter listens elsewhere"),
        }
        let (export, root) = ([PROXY, &name, "exports", "root"], self.wanted.root.clone());
        let root = root.to_string_lossy();
        let root = root.trim_end_matches('/');
        if text(self, &export).is_none_or(|found| found.trim_end_matches('/') != root) {
            self.key(
                false,
                &export,
                root,
                "the kubelet measures the wrong disk, and collects no images",
            );
        }
        let annotations = [PROXY, &name, "exports", ANNOTATIONS];
        if self.has_transfer() && text(self, &annotations).as_deref() != Some("true") {
            // A text, not a truth value.
            let why = "the transfer service sends no labels, so that nothing is lazy";
            self.key(true, &annotations, "true", why);
        }
    }

    fn cri(&mut self) {
        let (name, table) = (self.wanted.snapshotter.clone(), self.cri_table());
        let snapshotter = [&table[..], &["snapshotter"]].concat();
        if self.value(&snapshotter).and_then(Item::as_str) != Some(&name) {
            let why = "pods are started without the snapshotter";
            self.key(true, &snapshotter, name.as_str(), why);
        }
        let silent = [&table[..], &["disable_snapshot_annotations"]].concat();
        let passes_on = self.value(&silent).and_then(Item::as_bool) == Some(false);
        // Later ones do it by the transfer service.
        if !self.has_transfer() && !passes_on {
            let why = "CRI names no images and layers to the snapshotter, so that nothing is lazy";
            self.key(true, &silent, false, why);
        }
    }

    fn unpack(&mut self) {
        if !self.has_transfer() {
            return;
        }
        let keys = ["plugins", TRANSFER, "unpack_config"];
        let there = snapshotters(self.value(&keys));
        let file = self.config.deciding(&keys[..2]).0.clone();
        // A list replaces containerd's own, which has overlayfs.
        let wanted = [self.wanted.snapshotter.as_str(), "overlayfs"];
        for (number, name) in wanted.into_iter().enumerate() {
            if there.iter().any(|found| found == name) {
                continue;
            }
            let is_grave = number == 0;
            let found = match is_grave {
                true => format!("{} has no entry for {name}: pulls for it fail", shown(&keys)),
                false => format!(
                    "{} has no entry for {name}: clients that want it can't pull",
                    shown(&keys)
                ),
            };
            let advice = format!(
                "add [[{}]] with platform = \"linux\" and snapshotter = {name:?}",
                shown(&keys)
            );
            let ours = file == self.config.files[0].0;
            let fix = ours.then(|| Fix::Unpack(name.to_owned()));
            self.faults.push(Fault { file: file.clone(), is_grave, found, advice, fix });
        }
    }

    /// Tables that containerd does not look at, in a file of this version.
    fn strays(&mut self) {
        let (wrong, right) = match self.cri_table()[1] {
            CRI_1 => (CRI_2, CRI_1),
            _ => (CRI_1, CRI_2),
        };
        for (file, document) in &self.config.files {
            if find(document, &["plugins", wrong]).is_some() {
                let version = self.config.version().unwrap_or_default();
                self.faults.push(Fault {
                    file: file.clone(),
                    is_grave: false,
                    found: format!(
                        "plugins.{wrong:?} has no effect in a file of version {version}"
                    ),
                    advice: format!("move what it says to plugins.{right:?}"),
                    fix: None,
                });
            }
        }
    }
}

/// Snapshotters that an `unpack_config` names.
fn snapshotters(list: Option<&Item>) -> Vec<String> {
    let name = |item: &dyn toml_edit::TableLike| {
        item.get("snapshotter").and_then(Item::as_str).map(str::to_owned)
    };
    match list {
        Some(Item::ArrayOfTables(tables)) => {
            tables.iter().filter_map(|table| name(table)).collect()
        }
        Some(Item::Value(Value::Array(values))) => {
            let tables = values.iter().filter_map(Value::as_inline_table);
            tables.filter_map(|table| name(table)).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(release: Option<&str>) -> Wanted {
        Wanted {
            snapshotter: "soci".to_owned(),
            socket: "/run/soci.sock".into(),
            root: "/var/lib/soci/".into(),
            release: release.map(|text| text.parse().unwrap()),
        }
    }

    /// Faults of a file, as `key` and, of grave ones, an exclamation mark.
    fn check(release: Option<&str>, text: &str, expected: &[&str]) {
        let faults = Config::of(text).check(&wanted(release));
        let found: Vec<_> = faults
            .iter()
            .map(|fault| {
                let mark = if fault.is_grave { "!" } else { "" };
                format!("{}{mark}", fault.found.split(": ").next().unwrap())
            })
            .collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found} should have {expected}");
        }
    }

    const PROXY_1: &str = "[proxy_plugins.soci]\ntype = \"snapshot\"\naddress = \"/run/soci.sock\"\n\
         [proxy_plugins.soci.exports]\nroot = \"/var/lib/soci\"\n";

    #[test]
    fn of_containerd_1() {
        let cri = |lines: &str| {
            format!("version = 2\n[plugins.\"{CRI_1}\".containerd]\n{lines}{PROXY_1}")
        };
        let good = "snapshotter = \"soci\"\ndisable_snapshot_annotations = false\n";
        check(Some("1.7"), &cri(good), &[]);
        check(None, &cri(good), &[]);
        check(
            Some("1.6"),
            &cri("snapshotter = \"soci\"\n"),
            &["disable_snapshot_annotations is not set"],
        );
        let silent = "snapshotter = \"soci\"\ndisable_snapshot_annotations = true\n";
        check(Some("1.6"), &cri(silent), &["disable_snapshot_annotations is true"]);
        let elsewhere = cri(good).replace("/run/soci.sock", "unix:///run/soci.sock");
        check(
            Some("1.6"),
            &elsewhere,
            &["proxy_plugins.soci.address is \"unix:///run/soci.sock\"!"],
        );
        let stray =
            cri(good) + "[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"soci\"\n";
        check(Some("1.6"), &stray, &["has no effect in a file of version 2"]);
        check(Some("1.6"), "root = \"/x\"\n", &["no version"]);
    }

    #[test]
    fn of_containerd_2() {
        let export = "enable_remote_snapshot_annotations = \"true\"\n";
        let unpack =
            "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = \"linux\"\n";
        let cri = format!("version = 3\n[plugins.'{CRI_2}']\nsnapshotter = \"soci\"\n");
        let both = format!("{unpack}snapshotter = \"soci\"\n{unpack}snapshotter = \"overlayfs\"\n");
        let good = format!("{cri}{PROXY_1}{export}{both}");
        check(Some("2.3"), &good, &[]);
        check(None, &good, &[]);
        let truth = good.replace("\"true\"", "true");
        check(Some("2.3"), &truth, &["enable_remote_snapshot_annotations is true!"]);
        let no_list = format!("{cri}{PROXY_1}{export}");
        check(Some("2.1"), &no_list, &["no entry for soci", "no entry for overlayfs"]);
        // 2.0 pulls for CRI by itself.
        check(Some("2.0"), &no_list, &["disable_snapshot_annotations"]);
        let old = good.replace(CRI_2, &format!("{CRI_1}'.'containerd"));
        check(
            Some("2.3"),
            &old,
            &["snapshotter is not set!", "has no effect in a file of version 3"],
        );
        check(
            Some("2.3"),
            "",
            &[
                "it is empty!",
                "type",
                "address",
                "root",
                "annotations",
                "snapshotter",
                "soci",
                "overlayfs",
            ],
        );
    }

    #[test]
    fn imported_files_decide_on_their_plugins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let lines = "snapshotter = \"soci\"\ndisable_snapshot_annotations = false\n";
        let cri = format!("[plugins.\"{CRI_1}\".containerd]\n{lines}");
        fs::write(&path, format!("version = 2\nimports = [\"conf.d/*.toml\"]\n{cri}")).unwrap();
        fs::create_dir(directory.path().join("conf.d")).unwrap();
        let import = |text: &str| fs::write(directory.path().join("conf.d/a.toml"), text).unwrap();
        import(&format!("version = 2\n{PROXY_1}"));
        assert!(Config::read(&path).unwrap().check(&wanted(Some("1.7"))).is_empty());
        import(&format!("version = 2\n{PROXY_1}[plugins.\"{CRI_1}\"]\nsandbox_image = \"x\"\n"));
        let faults = Config::read(&path).unwrap().check(&wanted(Some("1.7")));
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults.iter().all(|fault| fault.file.ends_with("a.toml") && fault.fix.is_none()));
    }
}
