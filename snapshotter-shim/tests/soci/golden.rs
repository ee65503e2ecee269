//! What the peer printed, byte by byte, times and ages aside.
//!
//! The commands run in the order of the recording, each on what those before it left. Where several
//! layers or blobs are worked on at once, the order of their lines is nobody's promise. Deviations are
//! meant, and stand here with their reasons.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use spanfs_registry::Registry;
use spanfs_snapshotter::containerd::Client;

use crate::containerd::Containerd;
use crate::image;

pub(crate) const SOCI: &str = env!("CARGO_BIN_EXE_soci");
const IMAGE: &str = "127.0.0.1:5077/fx/v1:1";
const CONVERTED: &str = "127.0.0.1:5077/fx/v1converted:1";

/// Whether lines stand in a fixed order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    Ordered,
    AnyOrder,
}
use Lines::{AnyOrder, Ordered};

struct Golden {
    containerd: Containerd,
    root: PathBuf,
    failures: Vec<String>,
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/cli").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Golden {
    fn start() -> Option<Self> {
        let containerd = Containerd::start()?;
        let root = containerd.scratch().join("soci");
        Some(Self { containerd, root, failures: Vec::new() })
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let address = self.containerd.address();
        let mut command = Command::new(SOCI);
        command.env_clear().env("CONTAINERD_ADDRESS", address).args(arguments);
        command.output().unwrap()
    }

    /// Run a command with the content store `soci` and hold it against the recording.
    fn check(&mut self, name: &str, lines: Lines, arguments: &[&str]) {
        let root = self.root.display().to_string();
        let globals = ["--root", &root, "--content-store", "soci"];
        self.check_all(name, lines, &[&globals, arguments].concat());
    }

    fn check_all(&mut self, name: &str, lines: Lines, arguments: &[&str]) {
        let output = self.run(arguments);
        let expected: i32 = fixture(&format!("{name}.exit")).trim().parse().unwrap();
        let mut problems = Vec::new();
        if output.status.code() != Some(expected) {
            problems.push(format!("exit {:?}, expected {expected}", output.status.code()));
        }
        let scratch = self.containerd.scratch().display().to_string();
        for (stream, found) in [("stdout", output.stdout), ("stderr", output.stderr)] {
            let found = String::from_utf8(found).unwrap().replace(&scratch, "$ROOT");
            let expected = fixture(&format!("{name}.{stream}"));
            if expected == "<usage text>\n" && found.contains("\nUsage:\n") {
                continue;
            }
            let (found, expected) = (normal(&found, lines), normal(&expected, lines));
            if found != expected {
                problems.push(format!("{stream}\n{found}expected\n{expected}"));
            }
        }
        if !problems.is_empty() {
            self.failures.push(format!("{name}: {}", problems.join("\n")));
        }
    }

    /// Run a command that must succeed; its stdout.
    fn must(&self, arguments: &[&str]) -> String {
        let root = self.root.display().to_string();
        let output = self.run(&[&["--root", &root, "--content-store", "soci"], arguments].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Without times and ages, and sorted where the order means nothing.
fn normal(text: &str, lines: Lines) -> String {
    let mut normal: Vec<String> = text.lines().map(without_times).collect();
    if lines == AnyOrder {
        normal.sort();
    }
    let end = if text.ends_with('\n') { "\n" } else { "" };
    normal.join("\n") + end
}

fn without_times(line: &str) -> String {
    let digits = |text: &str| text.chars().filter(|c| c.is_ascii_digit()).count();
    if line.starts_with("Created:") || line.starts_with("time=") {
        let masked = line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c });
        return masked.collect();
    }
    match line.trim_end().strip_suffix("s ago") {
        // The column is as wide as its widest age.
        Some(rest) if digits(rest) > 0 => {
            rest.trim_end_matches(|c: char| c.is_ascii_digit() || "hm".contains(c)).to_owned()
        }
        _ if line.starts_with("DIGEST") => line.trim_end().to_owned(),
        _ => line.to_owned(),
    }
}

#[test]
fn commands_print_what_the_peer_prints() {
    let Some(mut golden) = Golden::start() else { return };
    let client = golden.containerd.client();
    golden.containerd.runtime.block_on(image::load(&client, "plain", IMAGE));
    golden.check("index-list-empty", Ordered, &["index", "list"]);
    golden.check("ztoc-list-empty", Ordered, &["ztoc", "list"]);
    golden.check("prefetch-list-empty", Ordered, &["prefetch", "list"]);
    creation(&mut golden);
    listing(&mut golden);
    inspection(&mut golden);
    pushing(&mut golden);
    mistakes(&mut golden);
    conversion(&mut golden, &client);
    removal(&mut golden);
    let failures = golden.failures.join("\n\n");
    assert!(failures.is_empty(), "{failures}");
}

const SMALL: [&str; 4] = ["--min-layer-size", "0", "--span-size", "65536"];

fn creation(golden: &mut Golden) {
    let prefetch = ["--prefetch-file", "/app/data.txt", "--prefetch-file", "/app/second.bin"];
    let one = ["create", "--min-layer-size", "50000", "--span-size", "65536", IMAGE];
    let force = ["create", "--force", "--optimizations", "xattr", "--min-layer-size", "0"];
    let missing = [&["create"], &SMALL[..], &["--prefetch-file", "/no/such", IMAGE]].concat();
    golden.check("create-all-too-small", AnyOrder, &["create", IMAGE]);
    let create = [&["create"], &SMALL[..], &prefetch, &[IMAGE]].concat();
    golden.check("create", AnyOrder, &create);
    golden.check("create-again", AnyOrder, &[&["create"], &SMALL[..], &[IMAGE]].concat());
    let force = [&force[..], &["--span-size", "131072", IMAGE]].concat();
    golden.check("create-force-xattr", AnyOrder, &force);
    golden.check("create-one-layer", AnyOrder, &one);
    golden.check("create-prefetch-missing", AnyOrder, &missing);
}

const INDEXES: [&str; 4] = [
    "sha256:a61484d144dee978f6378338dd6ce20d42214df168988c37315807db745f1447",
    "sha256:a2def12c7a1d69417f6599f0f3a224857d9663aaf29462ba45c985c618db64ac",
    "sha256:1ee672488a024a1320de958196e305bd55c8205a7ebab56d7b1091a2fb265fb5",
    "sha256:49f1c36d71b91979d2b7b60a1f049c4742479eafcbd3ceeefca5a5f7086d3b0d",
];
const ZTOC: &str = "sha256:4f6bd8e1536e945172e02d8b4d6cd4f52ebb9695cac25d89de955ca6c9c2ec27";
const SMALL_ZTOC: &str = "sha256:a430718c5d1fc1fd73f6018f172438e65407e8fb3c2d57d31061dfe572947426";
const PREFETCH: &str = "sha256:a8dbfe1d73cd03dd0dd111c97b5873844115f06c0dc875e700c3f20b1d03fb1a";

fn listing(golden: &mut Golden) {
    golden.check("index-list", Ordered, &["index", "list"]);
    golden.check("index-list-q", Ordered, &["index", "list", "--quiet"]);
    golden.check("index-list-ref", Ordered, &["index", "list", "--ref", IMAGE]);
    let platform = ["index", "list", "--platform", "linux/amd64"];
    golden.check("index-list-platform", Ordered, &platform);
    golden.check("ztoc-list", Ordered, &["ztoc", "list"]);
    golden.check("prefetch-list", Ordered, &["prefetch", "list"]);
    golden.check("ztoc-list-by-ztoc", Ordered, &["ztoc", "list", "--ztoc-digest", ZTOC]);
    // The peer reads indexes from containerd alone, finds none there, and lists nothing.
    let listed = golden.must(&["ztoc", "list", "--quiet", "--image-ref", IMAGE]);
    assert_eq!(listed.lines().count(), 6, "{listed}");
}

fn inspection(golden: &mut Golden) {
    for (number, index) in INDEXES.iter().enumerate() {
        golden.check(&format!("index-info-{number}"), Ordered, &["index", "info", index]);
    }
    golden.check("ztoc-info", Ordered, &["ztoc", "info", ZTOC]);
    golden.check("ztoc-info-small", Ordered, &["ztoc", "info", SMALL_ZTOC]);
    golden.check("prefetch-info", Ordered, &["prefetch", "info", PREFETCH]);
    // The peer adds a line end that the file does not have.
    let found = golden.must(&["ztoc", "get-file", ZTOC, "app/data.txt"]);
    assert_eq!(format!("{found}\n"), fixture("ztoc-get-file.stdout"));
    let out = golden.containerd.scratch().join("got").display().to_string();
    let get = ["ztoc", "get-file", "-o", &out, ZTOC, "app/big.bin"];
    golden.check("ztoc-get-file-output", Ordered, &get);
    let big = std::fs::read(&out).unwrap();
    let digest = spanfs_layer::Digest::of(&big).hex().to_string();
    assert_eq!(digest, image::sha256_of("app/big.bin"), "{} bytes", big.len());
}

fn pushing(golden: &mut Golden) {
    let registry = Registry::builder().without_referrers().start().unwrap();
    image::serve(&registry, "plain", "fx/v1", "1");
    // The recording's registry had a port of its own.
    let hosts = golden.containerd.scratch().join("hosts");
    let directory = hosts.join("127.0.0.1:5077");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), format!("server = {:?}\n", registry.url()))
        .unwrap();
    let hosts = hosts.display().to_string();
    let push = ["push", "--plain-http", "--hosts-dir", &hosts];
    // The latest index is the one that `create-prefetch-missing` made again, the first one.
    golden.check("push", AnyOrder, &[&push[..], &[IMAGE]].concat());
    golden.check("push-again", Ordered, &[&push[..], &[IMAGE]].concat());
    let skip = [&push[..], &["--existing-index", "skip", "--quiet", IMAGE]].concat();
    golden.check("push-again-skip", Ordered, &skip);
    let tags = registry.tags("fx/v1");
    let subject = "sha256-9dd2971d6a1d244a13f904a119e767edafe1c1d75de615c276812751af78dee9";
    let referrers = tags.iter().find(|(tag, _)| tag == subject).map(|(_, digest)| *digest);
    let bytes = registry.manifest("fx/v1", &referrers.unwrap()).unwrap();
    assert_eq!(bytes, image::fixture("v1/referrers-fallback-tag.json").trim_ascii_end());
}

fn mistakes(golden: &mut Golden) {
    let zeros = format!("sha256:{}", "0".repeat(64));
    let root = golden.containerd.scratch().display().to_string();
    let json = format!("{root}/none.json");
    let check = |golden: &mut Golden, name: &str, line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        golden.check(&format!("err-{name}"), Ordered, &arguments);
    };
    for (name, line) in [
        ("no-such-command", "frobnicate"),
        ("create-no-args", "create"),
        ("create-unknown-image", "create 127.0.0.1:5077/no/such:1"),
        ("create-bad-flag", "create --no-such-flag x"),
        ("create-bad-span", "create --span-size abc x"),
        ("create-span-negative", "create --force --min-layer-size 0 --span-size -5 x"),
        ("create-bad-optimization", "create --optimizations nope x"),
        ("create-bad-platform", "create --platform a/b/c/d x"),
        ("create-prefetch-json", &format!("create --prefetch-files-json {json} x")),
        ("convert-no-args", "convert"),
        ("convert-one-arg", &format!("convert {IMAGE}")),
        (
            "convert-standalone-missing",
            &format!("convert --standalone {root}/nothing {root}/out.tar"),
        ),
        (
            "convert-format",
            &format!("convert --standalone --format zip {root}/nothing {root}/out.tar"),
        ),
        ("index-info-no-args", "index info"),
        ("index-info-unknown", &format!("index info {zeros}")),
        ("index-info-bad", "index info hello"),
        ("index-info-of-ztoc", &format!("index info {ZTOC}")),
        ("index-list-bad-flag", "index list --verbose"),
        ("index-rm-no-args", "index rm"),
        ("index-rm-unknown", &format!("index rm {zeros}")),
        ("ztoc-info-no-args", "ztoc info"),
        ("ztoc-info-unknown", &format!("ztoc info {zeros}")),
        ("ztoc-info-of-index", &format!("ztoc info {}", INDEXES[0])),
        ("ztoc-list-bad-flag", "ztoc list --verbose"),
        ("ztoc-get-file-no-args", "ztoc get-file"),
        ("ztoc-get-file-missing", &format!("ztoc get-file {ZTOC} no/such")),
        ("push-no-args", "push"),
        ("push-unknown", "push 127.0.0.1:5077/no/such:1"),
    ] {
        check(golden, name, line);
    }
    let small = format!("convert {IMAGE} 127.0.0.1:5077/fx/none:1");
    let small: Vec<&str> = small.split(' ').collect();
    golden.check("err-convert-too-small", AnyOrder, &small);
    let zero = ["create", "--force", "--min-layer-size", "0", "--span-size", "0", IMAGE];
    golden.check("err-create-span-zero", AnyOrder, &zero);
    golden.check_all("err-root-unwritable", Ordered, &["--root", "/proc/none", "index", "list"]);
    let none = format!("{root}/none.sock");
    let address = ["--address", &none, "--timeout", "2s", "--root", &root, "create", IMAGE];
    golden.check_all("err-address", Ordered, &address);
    // The peer makes an index of an image that is for another platform.
    let root = golden.root.display().to_string();
    let other = ["--root", &root, "create", "--platform", "linux/s390x", IMAGE];
    let output = golden.run(&other);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("linux/s390x"), "{stderr}");
}

fn conversion(golden: &mut Golden, client: &Client) {
    let convert = [&["convert"], &SMALL[..], &[IMAGE, CONVERTED]].concat();
    golden.check("convert", AnyOrder, &convert);
    golden.containerd.runtime.block_on(async {
        let found = client.images().get(CONVERTED).await.unwrap();
        let root = "sha256:ea71dda29cf77674f7bf4bcf88ba8ec71ef722f5214145347cf74803d09a3454";
        assert_eq!(found.target.digest.to_string(), root);
        // Unlike the peer's, it is whole in containerd, whatever the content store of artifacts.
        assert!(client.content().info(&found.target.digest).await.unwrap().is_some());
    });
    let listed = golden.must(&["index", "list"]);
    let expected = fixture("index-list-with-v2.stdout");
    // Where the peer has one for a platform that the image is not for.
    let expected: Vec<&str> = expected.lines().filter(|it| !it.contains("s390x")).collect();
    let expected = normal(&(expected.join("\n") + "\n"), Ordered);
    if normal(&listed, Ordered) != expected {
        golden.failures.push(format!("index-list-with-v2:\n{listed}expected\n{expected}"));
    }
}

fn removal(golden: &mut Golden) {
    golden.check("index-rm", Ordered, &["index", "rm", INDEXES[3]]);
    golden.check("index-rm-ref", Ordered, &["index", "rm", "--ref", CONVERTED]);
    let before = golden.must(&["index", "list", "--quiet"]);
    let expected = fixture("index-list-after-rm.stdout");
    let expected = expected.lines().skip(1).filter(|it| !it.contains("s390x"));
    let expected: Vec<&str> = expected.filter_map(|line| line.split("  ").next()).collect();
    assert_eq!(before.lines().collect::<Vec<_>>(), expected);
    golden.check("rebuild-db", Ordered, &["rebuild-db"]);
    // Of the peer's removed indexes some come back, as their blobs were left behind.
    assert_eq!(golden.must(&["index", "list", "--quiet"]), before);
    let table = golden.must(&["index", "list"]);
    // And what the content store holds can be told without any record.
    std::fs::remove_file(golden.root.join("artifacts.redb")).unwrap();
    assert_eq!(golden.must(&["index", "list"]).lines().count(), table.lines().count());
    golden.check("ztoc-info", Ordered, &["ztoc", "info", ZTOC]);
}
