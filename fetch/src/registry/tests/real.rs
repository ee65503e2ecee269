//! Real peers: Debian's docker-registry, images pushed by skopeo, and our own embedded registry with
//! token authorisation and TLS.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use spanfs_layer::Digest;
use spanfs_layer::oci::Platform;
use spanfs_registry::{Auth, Bearer, Credentials as Account, Registry as Embedded};

use super::*;
use crate::layout::Layout;
use crate::local::ReadPool;
use crate::source::{ImageRef, Source, SourceOptions};
use crate::{Content, CredentialSource, Login, Secret};

pub(crate) fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images")
}

/// Ends with its drop, by its own handle.
struct Docker {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Docker {
    /// `None`, with the reason on standard error, where the programs are not installed.
    async fn start() -> Option<Self> {
        for program in ["docker-registry", "skopeo"] {
            let found = Command::new(program).arg("--help").stdout(Stdio::null()).status();
            if found.is_err() {
                let strict = std::env::var_os("SPANFS_TEST_STRICT").is_some_and(|v| v == "1");
                assert!(!strict, "{program} is not installed");
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
             http: {{addr: 127.0.0.1:{port}}}\n"
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let docker = Self { child, port, _dir: dir };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(docker);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("docker-registry does not listen after 10 s");
    }

    fn push(&self, image: &str, to: &str) {
        let from = format!("oci:{}", images().join(image).display());
        let to = format!("docker://127.0.0.1:{}/{to}", self.port);
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--all", "--insecure-policy", "--dest-tls-verify=false"])
            .args([&from, &to])
            .status()
            .unwrap();
        assert!(status.success(), "skopeo copy {from} {to}");
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Limits for real programs on a busy machine.
fn patient() -> RegistryOptions {
    RegistryOptions::default()
}

pub(crate) fn source_options(options: RegistryOptions) -> SourceOptions {
    SourceOptions {
        registry: Registry::new(options).unwrap(),
        opener: Arc::new(|_, _, _| panic!("no bulk in these tests")),
        pool: ReadPool::start(1).unwrap(),
        runtime: tokio::runtime::Handle::current(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_pushed_by_skopeo_are_what_they_were() {
    let Some(docker) = Docker::start().await else { return };
    let options = source_options(patient());
    let platform: Platform = "linux/amd64".parse().unwrap();
    for image in ["plain", "plain-multi", "plain-docker"] {
        docker.push(image, &format!("a/{image}:t"));
        let name = format!("127.0.0.1:{}/a/{image}:t", docker.port);
        let there = Source::open(&name.parse().unwrap(), &options).unwrap();
        let local = ImageRef::Directory { path: images().join(image), tag: None };
        let here = Source::open(&local, &options).unwrap();
        let (there, here) = (there.resolve(&platform).await, here.resolve(&platform).await);
        let (there, here) = (there.unwrap(), here.unwrap());
        assert_eq!(there.manifest, here.manifest, "{image}");
        assert_eq!(there.manifest_bytes, here.manifest_bytes, "{image}");
        assert_eq!(there.config_bytes, here.config_bytes, "{image}");
        assert_eq!(there.index.is_some(), image == "plain-multi");
    }
    let absent = format!("127.0.0.1:{}/a/plain:other", docker.port);
    let absent = Source::open(&absent.parse().unwrap(), &options).unwrap();
    let error = absent.resolve(&platform).await.unwrap_err();
    assert_eq!(error.class(), crate::Class::Gone);
    assert!(error.to_string().contains("manifest other of a/plain"), "{error}");
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_to_docker_registry() {
    let Some(docker) = Docker::start().await else { return };
    let host = format!("127.0.0.1:{}", docker.port);
    let repository_of = |name: &str| {
        let reference: Reference = format!("{host}/{name}").parse().unwrap();
        Registry::new(patient()).unwrap().repository(&reference).unwrap()
    };
    let bytes: Bytes = (0..3_000_000_u32).map(|i| ((i * 31) >> 7) as u8).collect();
    let digest = Digest::of(&bytes);
    let chunked = repository_of("a/chunked");
    let upload = Upload::Chunked { chunk_len: 1_000_000 };
    chunked.push_blob(&digest, &Content::Bytes(bytes.clone()), upload).await.unwrap();
    assert_eq!(chunked.blob_bytes(&digest, 1 << 22).await.unwrap(), bytes);
    let small = Bytes::from_static(b"{}");
    let config = Digest::of(&small);
    let other = repository_of("a/other");
    other.push_blob(&config, &Content::Bytes(small), Upload::Monolithic).await.unwrap();
    assert!(other.mount_blob(&digest, "a/chunked").await.unwrap());
    assert!(!other.mount_blob(&Digest::of(b"nowhere"), "a/chunked").await.unwrap());
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}",
        "config":{{"mediaType":"application/x-test","digest":"{config}","size":2}},
        "layers":[{{"mediaType":"application/octet-stream","digest":"{digest}","size":3000000}}]}}"#
    );
    let subject = other.push_manifest("t", MANIFEST_TYPE, manifest.clone().into()).await.unwrap();
    assert_eq!(other.manifest("t").await.unwrap().bytes, manifest);
    assert_eq!(other.manifest_digest("t").await.unwrap(), Some(subject));
    // This registry has no referrers API: the tag is made, and read.
    let artifact = manifest.replacen(
        r#""config""#,
        &format!(
            r#""subject":{{"mediaType":"{MANIFEST_TYPE}","digest":"{subject}","size":{}}},"config""#,
            manifest.len()
        ),
        1,
    );
    let object = Digest::of(artifact.as_bytes()).to_string();
    other.push_manifest(&object, MANIFEST_TYPE, artifact.into()).await.unwrap();
    let referrers = other.referrers(&subject, Some("application/x-test")).await.unwrap();
    assert_eq!(referrers.iter().map(|it| it.digest.to_string()).collect::<Vec<_>>(), [object]);
    assert!(other.referrers(&subject, Some("application/x-none")).await.unwrap().is_empty());
}

fn account() -> RegistryOptions {
    let login = Login::Password { username: "me".to_owned(), password: Secret::new("pass") };
    let source = CredentialSource::Given { host: None, login, name: "environment".to_owned() };
    RegistryOptions { credentials: vec![source], ..patient() }
}

async fn copy_in(options: RegistryOptions, host: &str) -> Result<(), crate::SourceError> {
    let options = source_options(options);
    let layout = Layout::directory(&images().join("plain"), &options.pool).unwrap();
    let image = layout.find(None).unwrap();
    let to = Source::open(&format!("{host}/a/b:t").parse().unwrap(), &options)?;
    let local = ImageRef::Directory { path: images().join("plain"), tag: None };
    let local = Source::open(&local, &options)?.resolve(&Platform::default()).await?;
    for blob in local.layers().iter().chain([&local.manifest.config]) {
        to.push_blob(&blob.digest, &layout.content(&blob.digest).unwrap()).await?;
    }
    to.push_manifest(Some("t"), &image.media_type, local.manifest_bytes.clone()).await?;
    let back = to.resolve(&Platform::default()).await?;
    assert_eq!(back.manifest_bytes, local.manifest_bytes);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_authorisation_for_pull_and_push() {
    let bearer = Bearer::new(Account::new("me", "pass"));
    let server = Embedded::builder().auth(Auth::Bearer(bearer)).start().unwrap();
    let host = server.addr().to_string();
    copy_in(account(), &host).await.unwrap();
    let error = copy_in(patient(), &host).await.unwrap_err();
    assert!(error.to_string().contains("for anonymous (no source"), "{error}");
    let reference: Reference = format!("{host}/a/b:t").parse().unwrap();
    let repository = Registry::new(account()).unwrap().repository(&reference).unwrap();
    repository.manifest("t").await.unwrap();
    server.revoke_tokens();
    repository.manifest("t").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_a_private_ca() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate =
        rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let server = Embedded::builder().tls(Arc::new(config)).start().unwrap();
    let host = format!("localhost:{}", server.addr().port());

    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join(host.replace(':', "_") + "_");
    std::fs::create_dir(&hosts).unwrap();
    std::fs::write(hosts.join("ca.crt"), ca_pem).unwrap();
    let with = |text: Option<&str>| {
        let file = hosts.join("hosts.toml");
        match text {
            Some(text) => std::fs::write(file, text).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
        RegistryOptions { hosts_dirs: vec![dir.path().to_owned()], ..patient() }
    };
    copy_in(with(Some("ca = \"ca.crt\"")), &host).await.unwrap();
    copy_in(with(Some("skip_verify = true")), &host).await.unwrap();
    let server_line = format!("server = \"https://{host}\"");
    let error = copy_in(with(Some(&server_line)), &host).await.unwrap_err().to_string();
    assert!(error.contains("TLS with localhost") && error.contains("name its CA"), "{error}");
    // Docker's older layout of the same directory.
    copy_in(with(None), &host).await.unwrap();
}
