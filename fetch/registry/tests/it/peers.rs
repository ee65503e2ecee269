//! skopeo as a client that we did not write.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use spanfs_registry::{Auth, Bearer, Credentials, Redirect, Registry};

fn skopeo(arguments: &[&str]) -> Option<Output> {
    match Command::new("skopeo").args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if std::env::var_os("SPANFS_TEST_STRICT").is_some_and(|it| it == "1") => {
            panic!("skopeo is needed: {error}")
        }
        Err(error) => {
            eprintln!("skipped: skopeo: {error}");
            None
        }
    }
}

fn copy(arguments: &[&str]) -> bool {
    let Some(output) = skopeo(&[&["copy", "--all", "--quiet"], arguments].concat()) else {
        return false;
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {stderr}");
    true
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/images/plain")
}

fn blobs(layout: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let mut blobs: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    blobs.sort();
    blobs
}

/// Push the fixture and pull it back; every blob must come back as it was.
fn round_trip(registry: &Registry, credentials: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let remote = format!("docker://{}", registry.reference("team/app", "v1"));
    let source = format!("oci:{}", fixture().display());
    let back = scratch.path().join("back");
    let target = format!("oci:{}:v1", back.display());
    let with = |side: &str| {
        let tls = format!("--{side}-tls-verify=false");
        let creds = credentials.iter().map(|creds| format!("--{side}-creds={creds}"));
        [tls].into_iter().chain(creds).collect::<Vec<_>>()
    };
    let run = |options: Vec<String>, from: &str, to: &str| {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        copy(&[&options[..], &[from, to]].concat())
    };
    if run(with("dest"), &source, &remote) && run(with("src"), &remote, &target) {
        assert!(blobs(&back) == blobs(&fixture()), "blobs differ after the round trip");
    }
}

#[test]
fn skopeo_pushes_and_pulls() {
    round_trip(&Registry::builder().start().unwrap(), &[]);
}

#[test]
fn skopeo_pushes_into_a_directory_behind_tokens_and_redirects() {
    let directory = tempfile::tempdir().unwrap();
    let redirect = Redirect { lifetime: std::time::Duration::from_secs(60), host: None };
    let registry = Registry::builder()
        .directory(directory.path())
        .auth(Auth::Bearer(Bearer::new(Credentials::new("u", "p"))))
        .redirect(redirect)
        .start()
        .unwrap();
    round_trip(&registry, &["u:p"]);
    assert_eq!(registry.stats().credential_leaks, 0);
}

#[test]
fn skopeo_pulls_a_layout_served_in_place() {
    let registry = Registry::builder().start().unwrap();
    let found = registry.put_image("team/app", &fixture()).unwrap();
    let (_, digest) = found.first().expect("an image in the fixture");
    registry.tag("team/app", "v1", *digest).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let remote = format!("docker://{}", registry.reference("team/app", "v1"));
    let target = format!("oci:{}:v1", scratch.path().display());
    if copy(&["--src-tls-verify=false", &remote, &target]) {
        assert!(blobs(scratch.path()) == blobs(&fixture()));
    }
}
