//! Ways to an image: client certificates, proxies, archives, platforms.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;

use crate::peers::{DockerRegistry, Guarded, able, fixture, run, skopeo_copy};
use crate::proxy::Proxy;
use crate::scratch::Scratch;
use crate::trees::{self, look};

const PEERS: &[&str] = &["docker-registry", "skopeo"];

/// A private authority, with a registry's and a client's certificate, as PEM files.
struct Authority {
    directory: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        fs::create_dir_all(directory).expect("directory");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("certificate");
        fs::write(directory.join("ca.crt"), certificate.pem()).expect("write");
        let issuer = Issuer::new(params, key);
        for (file, name) in [("server", name), ("client", "client")] {
            let key = KeyPair::generate().expect("key");
            let params = CertificateParams::new(vec![name.to_owned()]).expect("name");
            let certificate = params.signed_by(&key, &issuer).expect("certificate");
            fs::write(directory.join(format!("{file}.cert")), certificate.pem()).expect("write");
            fs::write(directory.join(format!("{file}.key")), key.serialize_pem()).expect("write");
        }
        Self { directory: directory.to_owned() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn text(&self) -> &str {
        self.directory.to_str().expect("text")
    }
}

/// A `hosts.toml` for `host`, below a directory of its own.
fn hosts(directory: &Path, host: &str, lines: &str) -> String {
    let dir = directory.join(host);
    fs::create_dir_all(&dir).expect("directory");
    let toml = format!("server = \"https://{host}\"\n[host.\"https://{host}\"]\n{lines}");
    fs::write(dir.join("hosts.toml"), toml).expect("write");
    directory.to_str().expect("text").to_owned()
}

fn port(registry: &DockerRegistry) -> &str {
    registry.address.rsplit_once(':').expect("port").1
}

#[test]
fn client_certificate_of_hosts_toml_opens_the_registry() {
    if !able(PEERS, true) {
        return;
    }
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch.path("ca"), "localhost");
    let registry = DockerRegistry::start(&Guarded {
        tls: Some((authority.file("server.cert"), authority.file("server.key"))),
        client_ca: Some(authority.file("ca.crt")),
        ..Guarded::default()
    });
    let host = format!("localhost:{}", port(&registry));
    let image = format!("{host}/golden/plain:1");
    skopeo_copy(
        &format!("oci:{}:fixture", fixture("images/plain").display()),
        &format!("docker://{image}"),
        // It takes ca.crt, client.cert and client.key from there.
        &["--dest-cert-dir", authority.text()],
    );
    let ca = format!("ca = \"{}\"\n", authority.file("ca.crt").display());
    let pair = format!(
        "client = [[\"{}\", \"{}\"]]\n",
        authority.file("client.cert").display(),
        authority.file("client.key").display()
    );
    let with = hosts(&scratch.path("with"), &host, &format!("{ca}{pair}"));
    let root = scratch.mount(&image, &["--hosts-dir", &with]);
    trees::assert_same(&trees::golden(), &look(&root));
    scratch.umount();

    // Go's server looks at the client's certificate behind the handshake: the refusal comes with the
    // first answer.
    let without = hosts(&scratch.path("without"), &host, &ca);
    let refused = scratch.spanfs().args(["inspect", &image, "--hosts-dir", &without]).output();
    let refused = refused.expect("spanfs starts");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "no certificate was needed");
    assert!(said.contains(&host), "no host in: {said}");
    assert!(said.to_lowercase().contains("certificate"), "no certificate in: {said}");
}

#[test]
fn proxies_of_the_environment_lead_to_hosts_that_only_they_know() {
    if !able(PEERS, true) {
        return;
    }
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch.path("ca"), "registry.test");
    for secure in [true, false] {
        let tls = secure.then(|| (authority.file("server.cert"), authority.file("server.key")));
        let registry = DockerRegistry::start(&Guarded { tls, ..Guarded::default() });
        skopeo_copy(
            &format!("oci:{}", fixture("images/v2").display()),
            &format!("docker://{}/golden/v2:1", registry.address),
            &["--all", "--dest-tls-verify=false"],
        );
        // user:secret
        let proxy = Proxy::start(&registry.address, "Basic dXNlcjpzZWNyZXQ=");
        let host = format!("registry.test:{}", port(&registry));
        let image = format!("{host}/golden/v2:1");
        let ca = format!("ca = \"{}\"\n", authority.file("ca.crt").display());
        let directory = scratch.path(if secure { "secure" } else { "plain" });
        let directory = match secure {
            true => hosts(&directory, &host, &ca),
            false => String::new(),
        };
        let options = match secure {
            true => vec!["--hosts-dir", directory.as_str()],
            false => vec!["--plain-http"],
        };
        let variable = if secure { "HTTPS_PROXY" } else { "http_proxy" };
        let url = format!("http://user:secret@{}", proxy.address);
        let root = scratch.path("mnt");
        fs::create_dir_all(&root).expect("directory");
        run(scratch
            .spanfs()
            .env(variable, &url)
            .arg("mount")
            .args(&options)
            .arg(&image)
            .arg(&root));
        trees::assert_same(&trees::golden(), &look(&root));
        scratch.umount();
        scratch.forget();
        let requests = proxy.requests();
        let expected = match secure {
            true => format!("CONNECT {host} HTTP/1.1"),
            false => format!("http://{host}/v2/golden/v2/blobs/"),
        };
        assert!(requests.iter().any(|it| it.contains(&expected)), "{expected}: {requests:?}");

        // Exempted, the name is one that nobody knows.
        let direct = scratch
            .spanfs()
            .env(variable, &url)
            .env("NO_PROXY", ".other.test, registry.test")
            .args(["inspect", &image])
            .args(&options)
            .output()
            .expect("spanfs starts");
        let said = String::from_utf8_lossy(&direct.stderr).into_owned();
        assert_eq!(direct.status.code(), Some(1), "{said}");
        assert!(said.contains("registry.test"), "no host in: {said}");
        assert_eq!(proxy.requests().len(), requests.len(), "the proxy was asked all the same");

        // A proxy that refuses us says so, and its password is not repeated.
        let wrong = format!("http://user:hunter2@{}", proxy.address);
        let refused =
            scratch.spanfs().env(variable, wrong).args(["inspect", &image]).args(&options).output();
        let said = String::from_utf8_lossy(&refused.expect("spanfs starts").stderr).into_owned();
        assert!(said.contains("407"), "no status in: {said}");
        assert!(!said.contains("hunter2"), "the password in: {said}");
    }
}

#[test]
fn archives_are_read_by_tag() {
    if !able(PEERS, true) {
        return;
    }
    let scratch = Scratch::new();
    let plain = fixture("images/plain");
    let archive = scratch.path("image.tar");
    for transport in ["oci-archive", "oci"] {
        let path = scratch.path(if transport == "oci" { "layout" } else { "image.tar" });
        let target = format!("{transport}:{}:first", path.display());
        skopeo_copy(&format!("oci:{}:fixture", plain.display()), &target, &[]);
        for image in [target.clone(), target.trim_end_matches(":first").to_owned()] {
            let root = scratch.mount(&image, &[]);
            trees::assert_same(&trees::golden(), &look(&root));
            scratch.umount();
            scratch.forget();
        }
        let other = target.replace(":first", ":second");
        let missing = scratch.spanfs().args(["inspect", &other]).output().expect("spanfs starts");
        let said = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert_eq!(missing.status.code(), Some(3), "{said}");
        assert!(said.contains("second") && said.contains("first"), "no tags in: {said}");
    }
    let target = format!("oci-archive:{}:new", archive.display());
    let written = scratch.spanfs().args(["index", &target, "--output", &target]).output();
    assert_eq!(written.expect("spanfs starts").status.code(), Some(2), "archives are read alone");
}

#[test]
fn every_platform_is_indexed_and_chosen() {
    if !able(PEERS, true) {
        return;
    }
    let scratch = Scratch::new();
    let registry = DockerRegistry::start(&Guarded::default());
    let source = format!("{}/golden/multi:1", registry.address);
    skopeo_copy(
        &format!("oci:{}", fixture("images/plain-multi").display()),
        &format!("docker://{source}"),
        &["--all", "--dest-tls-verify=false"],
    );
    let spanfs = |arguments: &[&str]| -> Value {
        let text = run(scratch.spanfs().arg("--json").args(arguments));
        serde_json::from_str(&text).expect("JSON")
    };
    // One platform: the other stays as it is, and goes along to another repository.
    let one = format!("{}/golden/one:1", registry.address);
    let size = ["--min-layer-size", "0"];
    let said =
        spanfs(&[&["index", &source, "-o", &one, "--platform", "linux/arm64"], &size[..]].concat());
    assert_eq!(said["images"].as_array().map(Vec::len), Some(1), "{said}");
    let found = |image: &str, platform: &str| spanfs(&["inspect", image, "--platform", platform]);
    assert_eq!(found(&one, "linux/arm64")["soci_index"]["found_by"], "annotation");
    assert!(found(&one, "linux/amd64")["soci_index"]["missing"].is_string());

    // All of them, in both forms.
    let all = format!("{}/golden/all:1", registry.address);
    let said = spanfs(&[&["index", &source, "-o", &all, "--all-platforms"], &size[..]].concat());
    let platforms: Vec<_> = said["images"].as_array().expect("images").iter().collect();
    assert_eq!(platforms.len(), 2, "{said}");
    for entry in &platforms {
        let platform = entry["platform"].as_str().expect("platform");
        let report = found(&all, platform);
        assert_eq!(report["soci_index"]["digest"], entry["index"], "{report}");
        assert_eq!(report["soci_index"]["version"], "v2");
        let root = scratch.mount(&all, &["--platform", platform]);
        assert!(look(&root).len() > 20, "{platform} shows little");
        scratch.umount();
    }
    let options = ["--all-platforms", "--format", "v1"];
    spanfs(&[&["index", &source], &options[..], &size[..]].concat());
    for platform in ["linux/amd64", "linux/arm64"] {
        let report = found(&source, platform);
        assert_eq!(report["soci_index"]["found_by"], "referrers", "{report}");
        assert_eq!(report["soci_index"]["version"], "v1");
    }

    // What is not there is named, with what is.
    let missing = scratch.spanfs().args(["inspect", &source, "--platform", "linux/s390x"]).output();
    let missing = missing.expect("spanfs starts");
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(missing.status.code(), Some(3), "{said}");
    assert!(said.contains("linux/s390x") && said.contains("linux/arm64"), "{said}");
    let single = format!("oci:{}", fixture("images/plain").display());
    let other = scratch.spanfs().args(["inspect", &single, "--platform", "windows/amd64"]).output();
    assert_eq!(other.expect("spanfs starts").status.code(), Some(3));
}
