//! Logins that only the node has: secrets of a cluster, and the kubelet's credential providers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use spanfs_registry::{Auth, Bearer, Credentials, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::node::PATIENCE;
use crate::pull::{Containerd, Image, can_mount, image};
use crate::scene::{Root, start_with};

const TOKEN: &str = "token-of-the-node";

fn registry() -> Registry {
    let login = Bearer::new(Credentials::new("cluster", "hush-hush"));
    Registry::builder().auth(Auth::Bearer(login)).start().unwrap()
}

/// The API of a cluster: an empty list of secrets, and events as they are sent.
struct Api {
    port: u16,
    authority: String,
    events: watch::Sender<String>,
}

impl Api {
    async fn start() -> Self {
        // As clusters have it: the certificate names the service, not the address.
        let made = rcgen::generate_simple_self_signed(vec!["kubernetes".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (events, seen) = watch::channel(String::new());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        // Whoever goes away is gone.
                        let _ = answer(stream, seen).await;
                    }
                });
            }
        });
        Self { port, authority: made.cert.pem(), events }
    }

    fn kubeconfig(&self, token: &str) -> String {
        let (port, authority) = (self.port, STANDARD.encode(&self.authority));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: node\n\
             clusters:\n- name: c\n  cluster:\n    server: https://127.0.0.1:{port}\n    \
             certificate-authority-data: {authority}\n    tls-server-name: kubernetes\n\
             contexts:\n- name: node\n  context: {{cluster: c, user: u}}\n\
             users:\n- name: u\n  user:\n    token: {token}\n"
        )
    }
}

async fn answer(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    mut events: watch::Receiver<String>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("GET /api/v1/secrets?"), "{head}");
    assert!(head.contains("kubernetes.io%2Fdockerconfigjson"), "{head}");
    if !head.contains(&format!("authorization: Bearer {TOKEN}\r\n")) {
        return stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await;
    }
    if !head.contains("watch=1") {
        let list = r#"{"kind":"SecretList","metadata":{"resourceVersion":"10"},"items":[]}"#;
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{list}", list.len());
        return stream.write_all(text.as_bytes()).await;
    }
    assert!(head.contains("resourceVersion=1"), "{head}");
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    loop {
        let event = events.borrow_and_update().clone();
        if !event.is_empty() {
            // In two pieces, as networks cut.
            let (first, second) = event.split_at(event.len() / 2);
            for piece in [first, second] {
                stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await?;
                stream.flush().await?;
            }
        }
        if events.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn secret(host: &str) -> String {
    let auth = STANDARD.encode("cluster:hush-hush");
    let config = format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"{auth}\"}}}}}}");
    let metadata =
        serde_json::json!({"namespace": "apps", "name": "pull", "resourceVersion": "11"});
    let data = serde_json::json!({".dockerconfigjson": STANDARD.encode(config)});
    let object = serde_json::json!({"metadata": metadata, "data": data});
    serde_json::json!({"type": "ADDED", "object": object}).to_string() + "\n"
}

/// Ask for the lowest layer until it is shown.
async fn until_shown(containerd: &mut Containerd, image: &Image) {
    let end = Instant::now() + PATIENCE;
    let labels = Containerd::labels(image, &image.layers[0]);
    while containerd.extract("", labels.clone()).await.unwrap().is_err() {
        assert!(Instant::now() < end, "nobody lets us in");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_with_the_secrets_of_a_cluster_as_they_come() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = registry();
    let image = image(&registry, "v2");
    let api = Api::start().await;
    let kubeconfig = root.path().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig("wrong-token")).unwrap();
    let settings = format!(
        "[kubeconfig_keychain]\nenable_keychain = true\nkubeconfig_path = {kubeconfig:?}\n"
    );
    let (node, mut containerd) = start_with(root.path(), "k8s.io", &settings).await;
    let labels = Containerd::labels(&image, &image.layers[0]);
    containerd.extract("", labels).await.unwrap().expect_err("nobody lets us in yet");
    // The node joins its cluster, and somebody makes a secret there.
    fs::write(&kubeconfig, api.kubeconfig(TOKEN)).unwrap();
    api.events.send(secret(&registry.addr().to_string())).unwrap();
    until_shown(&mut containerd, &image).await;
    node.signal("TERM");
    let (status, log) = node.wait();
    assert!(status.success(), "{log}");
    assert!(log.contains("answers 401"), "{log}");
    assert!(!log.contains("hush") && !log.contains(TOKEN) && !log.contains("wrong-token"), "{log}");
}

fn provider(directory: &Path, script: &str, host: &str) -> String {
    let (config, program) = (directory.join("providers.yaml"), directory.join("known"));
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
         - name: known\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
         matchImages: ['{host}']\n  defaultCacheDuration: 1h\n"
    );
    fs::write(&config, text).unwrap();
    format!("[spanfs.credential_providers]\nconfig = {config:?}\nbin_dir = {directory:?}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_with_a_credential_provider_of_the_kubelet() {
    if !can_mount() {
        return;
    }
    let root = Root::new();
    let registry = registry();
    let image = image(&registry, "v2");
    let host = registry.addr().to_string();
    let script = format!(
        "cat >/dev/null; echo '{{\"kind\":\"CredentialProviderResponse\",\
         \"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"cacheKeyType\":\"Registry\",\
         \"auth\":{{\"{host}\":{{\"username\":\"cluster\",\"password\":\"hush-hush\"}}}}}}'"
    );
    let settings = provider(root.path(), &script, &host);
    let (node, mut containerd) = start_with(root.path(), "k8s.io", &settings).await;
    containerd.pull(&image).await;
    node.signal("TERM");
    let (_, log) = node.wait();
    assert!(!log.contains("hush"), "{log}");
}

#[test]
fn a_wrong_configuration_of_providers_is_told_before_the_start() {
    let root = tempfile::tempdir().unwrap();
    let settings = provider(root.path(), "", "r.example");
    let config = root.path().join("config.toml");
    fs::write(&config, settings).unwrap();
    let check = || {
        let mut command = std::process::Command::new(crate::node::PROGRAM);
        command.args(["--check-config", "--config"]).arg(&config).output().unwrap()
    };
    assert!(check().status.success());
    let providers = root.path().join("providers.yaml");
    let text = fs::read_to_string(&providers).unwrap().replace("1h", "soon");
    fs::write(&providers, text).unwrap();
    let output = check();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && log.contains("defaultCacheDuration"), "{log}");
}
