//! Authority, redirects, TLS.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use spanfs_registry::{Auth, Bearer, Credentials, Fault, Faults, Nth, Redirect, Registry, Rule};

use crate::client::{get, send};

/// `u:p`
const BASIC: &str = "Basic dTpw";

#[test]
fn basic() {
    let auth = Auth::Basic(Credentials::new("u", "p"));
    let registry = Registry::builder().auth(auth).start().unwrap();
    let reply = get(registry.addr(), "/v2/");
    assert_eq!(reply.status, 401);
    assert!(reply.header("www-authenticate").starts_with("Basic realm="));
    let reply = send(registry.addr(), "GET", "/v2/", &[("Authorization", BASIC)], b"").unwrap();
    assert_eq!(reply.status, 200);
}

#[test]
fn bearer() {
    let mut bearer = Bearer::new(Credentials::new("u", "p"));
    bearer.refresh_token = Some("again".into());
    let registry = Registry::builder().auth(Auth::Bearer(bearer)).start().unwrap();
    let addr = registry.addr();
    let digest = registry.put_blob("a/b", b"content".as_slice()).unwrap();
    let path = format!("/v2/a/b/blobs/{digest}");
    let challenge = get(addr, &path).header("www-authenticate").to_owned();
    let realm = format!("Bearer realm=\"http://{addr}/token\",service=\"spanfs-registry\"");
    assert_eq!(challenge, format!("{realm},scope=\"repository:a/b:pull\""));

    let ask = "/token?service=spanfs-registry&scope=repository%3Aa/b%3Apull";
    let wrong = [("Authorization", "Basic dTpxcQ==")];
    assert_eq!(send(addr, "GET", ask, &wrong, b"").unwrap().status, 401);
    let by_basic = send(addr, "GET", ask, &[("Authorization", BASIC)], b"").unwrap();
    let form = b"grant_type=refresh_token&refresh_token=again&scope=repository:a/b:pull";
    let by_refresh = send(addr, "POST", "/token", &[], form).unwrap();
    for answer in [by_basic, by_refresh] {
        let token = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
        let get = || send(addr, "GET", &path, &[("Authorization", &token)], b"").unwrap();
        assert_eq!(get().body, b"content");
        let mut headers = vec![("Authorization", token.as_str())];
        let push = send(addr, "POST", "/v2/a/b/blobs/uploads/", &headers, b"").unwrap();
        assert_eq!(push.status, 401, "pull is no push");
        headers.clear();
    }
    let answer = send(addr, "GET", ask, &[("Authorization", BASIC)], b"").unwrap();
    let token = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
    registry.revoke_tokens();
    let reply = send(addr, "GET", &path, &[("Authorization", &token)], b"").unwrap();
    assert_eq!(reply.status, 401);
    assert!(reply.header("www-authenticate").ends_with("error=\"invalid_token\""));
}

#[test]
fn redirects_are_signed_and_expire() {
    let redirect = Redirect { lifetime: Duration::from_millis(300), host: None };
    let registry = Registry::builder().redirect(redirect).start().unwrap();
    let digest = registry.put_blob("a", b"content".as_slice()).unwrap();
    let path = format!("/v2/a/blobs/{digest}");
    let reply = get(registry.addr(), &path);
    assert_eq!(reply.status, 307);
    let store = registry.blob_store_addr();
    let url = reply.header("location");
    let target = url.strip_prefix(&format!("http://{store}")).expect("the blob store").to_owned();
    assert_eq!(get(store, &target).body, b"content");
    let leaked = send(store, "GET", &target, &[("Authorization", BASIC)], b"").unwrap();
    assert_eq!((leaked.status, registry.stats().credential_leaks), (400, 1));
    std::thread::sleep(Duration::from_millis(350));
    assert_eq!(get(store, &target).status, 403);
    registry.set_redirect(None);
    let rule = Rule::get("/v2/a/blobs/", Nth::Every, Fault::ExpiredRedirect);
    registry.set_faults(Faults::script([rule]));
    let reply = get(registry.addr(), &path);
    let target = reply.header("location").split_once(&store.to_string()).unwrap().1.to_owned();
    assert_eq!(get(store, &target).status, 403);
}

#[test]
fn tls() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let registry = Registry::builder().tls(Arc::new(config)).start().unwrap();
    assert!(registry.url().starts_with("https://"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut socket = TcpStream::connect(registry.addr()).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = [0; 12];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"HTTP/1.1 200");
}
