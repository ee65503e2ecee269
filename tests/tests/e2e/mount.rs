//! The built command against a real registry: every byte and attribute that it shows is compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::peers::{DockerRegistry, Guarded, able, fixture, run, skopeo_copy};
use crate::scratch::Scratch;
use crate::token_server::TokenServer;
use crate::trees::{self, look};

const PEERS: &[&str] = &["docker-registry", "skopeo"];

#[test]
fn image_indexed_by_us_reads_right_in_every_byte() {
    if !able(PEERS, true) {
        return;
    }
    let registry = DockerRegistry::start(&Guarded::default());
    let scratch = Scratch::new();
    let plain = fixture("images/plain");
    let image = format!("{}/golden/plain:1", registry.address);
    skopeo_copy(
        &format!("oci:{}:fixture", plain.display()),
        &format!("docker://{image}"),
        &["--dest-tls-verify=false"],
    );
    let expected = trees::golden();
    for front in ["erofs", "inode"] {
        for format in ["v1", "v2"] {
            let target = format!("{}/golden/{format}:1", registry.address);
            skopeo_copy(
                &format!("oci:{}:fixture", plain.display()),
                &format!("docker://{target}"),
                &["--dest-tls-verify=false"],
            );
            run(scratch.spanfs().args([
                "index",
                "--format",
                format,
                "--min-layer-size",
                "0",
                "--span-size",
                "64K",
                "--output",
                &target,
                &target,
            ]));
            let root = scratch.mount(&target, &["--front", front]);
            trees::assert_same(&expected, &look(&root));
            let status = scratch.status_of(&root);
            assert!(status.to_string().contains(front), "{front} in {status}");
            scratch.umount();
            scratch.forget();
        }
    }
}

#[test]
fn image_indexed_by_the_peer_reads_right_in_every_byte() {
    if !able(PEERS, true) {
        return;
    }
    let registry = DockerRegistry::start(&Guarded::default());
    let scratch = Scratch::new();
    let expected = trees::golden();
    let image = format!("{}/golden/v2:1", registry.address);
    skopeo_copy(
        &format!("oci:{}", fixture("images/v2").display()),
        &format!("docker://{image}"),
        &["--all", "--dest-tls-verify=false"],
    );
    let root = scratch.mount(&image, &[]);
    trees::assert_same(&expected, &look(&root));
    scratch.umount();
}

#[test]
fn image_without_index_is_verified_whole_and_shown() {
    if !able(PEERS, true) {
        return;
    }
    let scratch = Scratch::new();
    let plain = fixture("images/plain");
    let expected = trees::golden();
    let root = scratch.mount(&format!("oci:{}:fixture", plain.display()), &[]);
    trees::assert_same(&expected, &look(&root));
    scratch.umount();
}

#[test]
fn password_token_and_private_ca_are_honoured() {
    if !able(&[PEERS, &["htpasswd"]].concat(), true) {
        return;
    }
    let scratch = Scratch::new();
    let plain = fixture("images/plain");
    let expected = trees::golden();

    let htpasswd = scratch.path("htpasswd");
    fs::write(&htpasswd, run(Command::new("htpasswd").args(["-Bbn", "user", "secret"])))
        .expect("write");
    let tokens = TokenServer::start(scratch.dir.path(), "user:secret", Duration::from_secs(60));
    let (certificate, key) = certificate(scratch.dir.path());
    for guarded in [
        Guarded { htpasswd: Some(htpasswd), ..Guarded::default() },
        Guarded {
            token: Some((tokens.realm.clone(), tokens.certificate.clone())),
            ..Guarded::default()
        },
        Guarded { tls: Some((certificate.clone(), key)), ..Guarded::default() },
    ] {
        let registry = DockerRegistry::start(&guarded);
        let port = registry.address.rsplit_once(':').expect("port").1;
        let host = format!("localhost:{port}");
        let image = format!("{host}/golden/plain:1");
        fs::create_dir_all(scratch.path("docker")).expect("directory");
        let auth = serde_json::json!({"auths": {&host: {"auth": "dXNlcjpzZWNyZXQ="}}});
        fs::write(scratch.path("docker/config.json"), auth.to_string()).expect("write");
        let hosts = scratch.path("hosts");
        let _ = fs::remove_dir_all(&hosts);
        if guarded.tls.is_some() {
            let dir = hosts.join(&host);
            fs::create_dir_all(&dir).expect("directory");
            let toml = format!(
                "server = \"https://{host}\"\n[host.\"https://{host}\"]\nca = \"{}\"\n",
                certificate.display()
            );
            fs::write(dir.join("hosts.toml"), toml).expect("write");
        } else {
            fs::create_dir_all(&hosts).expect("directory");
        }
        skopeo_copy(
            &format!("oci:{}:fixture", plain.display()),
            &format!("docker://{image}"),
            &["--dest-tls-verify=false", "--dest-creds=user:secret"],
        );
        let hosts = hosts.to_str().expect("text").to_owned();
        let root = scratch.mount(&image, &["--hosts-dir", &hosts]);
        trees::assert_same(&expected, &look(&root));
        scratch.umount();
        scratch.forget();

        // without what it needs, it says so
        fs::remove_file(scratch.path("docker/config.json")).expect("remove");
        let _ = fs::remove_dir_all(&hosts);
        let refused = scratch
            .spanfs()
            .args(["mount", &image])
            .arg(scratch.path("mnt"))
            .output()
            .expect("spanfs starts");
        assert!(!refused.status.success(), "mounted without credentials or CA");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(&host), "no host in: {said}");
    }
    assert!(tokens.issued() > 0);
}

/// A certificate of a private authority for localhost, as PEM files.
fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().expect("key");
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .expect("names")
        .self_signed(&key)
        .expect("certificate");
    let paths = (dir.join("registry.pem"), dir.join("registry.key"));
    fs::write(&paths.0, certificate.pem()).expect("write");
    fs::write(&paths.1, key.serialize_pem()).expect("write");
    paths
}

#[test]
fn kill_9_leaves_nothing_that_the_next_mount_cannot_clean() {
    if !able(PEERS, true) {
        return;
    }
    let scratch = Scratch::new();
    let plain = fixture("images/plain");
    let expected = trees::golden();
    let image = format!("oci:{}:fixture", plain.display());
    let root = scratch.mount(&image, &[]);
    trees::assert_same(&expected, &look(&root));
    crate::survive::kill_both(&scratch, &root);
    std::thread::sleep(Duration::from_millis(200));
    let root = scratch.mount(&image, &[]);
    trees::assert_same(&expected, &look(&root));
    scratch.umount();
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    let below = scratch.dir.path().to_str().expect("text").to_owned();
    let left: Vec<_> = mounts.lines().filter(|line| line.contains(&below)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
