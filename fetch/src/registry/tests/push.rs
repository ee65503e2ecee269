//! Uploads to servers that behave in their own way.

use std::sync::Mutex;

use bytes::Bytes;
use spanfs_layer::Digest;
use spanfs_layer::oci::{Index, media_type};

use super::*;
use crate::{Class, Content};

const CONTENT: &[u8] = b"0123456789";

fn content() -> Content {
    Content::Bytes(Bytes::from_static(CONTENT))
}

/// An upload server: HEAD finds nothing, POST opens, and the rest is as told.
async fn server(rest: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |seen, number| match seen.method.as_str() {
        "HEAD" => reply(404, &[], ""),
        "POST" => reply(202, &[("Location", "/up?state=a%2Fb")], ""),
        _ => rest(seen, number),
    })
    .await
}

async fn push(server: &Server, upload: Upload) -> Result<(), RegistryError> {
    let repository = repository(options(), &server.host());
    repository.push_blob(&Digest::of(CONTENT), &content(), upload).await
}

#[tokio::test]
async fn monolithic() {
    let server = server(|_, _| reply(201, &[], "")).await;
    push(&server, Upload::Monolithic).await.unwrap();
    let digest = Digest::of(CONTENT).to_string();
    let escaped = digest.replace(':', "%3A");
    let seen = server.seen();
    assert_eq!(
        server.lines(),
        [
            format!("HEAD /v2/a/b/blobs/{digest}"),
            "POST /v2/a/b/blobs/uploads/".to_owned(),
            format!("PUT /up?state=a%2Fb&digest={escaped}"),
        ]
    );
    assert_eq!(seen[2].body, CONTENT);
    assert_eq!(seen[2].header("content-type"), "application/octet-stream");
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_sent() {
    let server = Server::start(|_, _| reply(200, &[], "")).await;
    push(&server, Upload::Monolithic).await.unwrap();
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn from_a_file() {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &[b"..", CONTENT].concat()).unwrap();
    let server = server(|_, _| reply(201, &[], "")).await;
    let content = Content::File { file: Arc::new(file), offset: 2, len: 10 };
    let repository = repository(options(), &server.host());
    repository.push_blob(&Digest::of(CONTENT), &content, Upload::Monolithic).await.unwrap();
    assert_eq!(server.seen()[2].body, CONTENT);
}

/// A server that keeps what it got and answers as the specification says, but for one fault.
async fn chunk_server(fault_at: usize, fault: Reply) -> (Server, Arc<Mutex<Vec<u8>>>) {
    let kept: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (store, patches) = (kept.clone(), Mutex::new(0));
    let server = server(move |seen, _| {
        let mut store = store.lock().unwrap();
        let state = |count: usize| format!("0-{}", count.saturating_sub(1));
        match seen.method.as_str() {
            "PATCH" => {
                let number = *patches.lock().unwrap();
                *patches.lock().unwrap() += 1;
                if number == fault_at {
                    // Half of it arrived before the fault.
                    store.extend(&seen.body[..seen.body.len() / 2]);
                    return fault.clone();
                }
                let expected = format!("{}-{}", store.len(), store.len() + seen.body.len() - 1);
                if seen.header("content-range") != expected {
                    return reply(416, &[], "");
                }
                store.extend(&seen.body);
                let place = format!("/up?state={}", store.len());
                reply(202, &[("Location", &place), ("Range", &state(store.len()))], "")
            }
            "GET" => {
                reply(204, &[("Location", "/up?state=now"), ("Range", &state(store.len()))], "")
            }
            "PUT" if seen.body.is_empty() => reply(201, &[], ""),
            _ => reply(400, &[], ""),
        }
    })
    .await;
    (server, kept)
}

#[tokio::test]
async fn chunks_go_on_where_the_server_stands() {
    for fault in
        [reply(503, &[], ""), reply(416, &[], ""), Reply::Cut(Vec::new()), Reply::Stall(Vec::new())]
    {
        for fault_at in [0, 1, 2, 9] {
            let (server, kept) = chunk_server(fault_at, fault.clone()).await;
            push(&server, Upload::Chunked { chunk_len: 4 }).await.unwrap();
            assert_eq!(*kept.lock().unwrap(), CONTENT, "{fault:?} at {fault_at}");
        }
    }
}

#[tokio::test]
async fn chunks_that_never_pass_end_the_upload() {
    let server = server(|seen, _| match seen.method.as_str() {
        "PATCH" => reply(416, &[], ""),
        _ => reply(204, &[("Range", "0-0")], ""),
    })
    .await;
    let error = push(&server, Upload::Chunked { chunk_len: 4 }).await.unwrap_err();
    assert!(error.to_string().contains("3 chunks in a row failed"), "{error}");
}

#[tokio::test]
async fn refusals_and_odd_answers() {
    for (bad, class, needle) in [
        (reply(403, &[], ""), Class::Refused, "403 forbidden"),
        (
            reply(400, &[], r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#),
            Class::Refused,
            "DIGEST_INVALID",
        ),
        (reply(500, &[], ""), Class::Retry, "answered 500"),
    ] {
        let server = server(move |_, _| bad.clone()).await;
        let error = push(&server, Upload::Monolithic).await.unwrap_err();
        assert!(error.class() == class && error.to_string().contains(needle), "{error}");
    }
    let nowhere = Server::start(|seen, _| match seen.method.as_str() {
        "HEAD" => reply(404, &[], ""),
        _ => reply(202, &[], ""),
    })
    .await;
    let error = push(&nowhere, Upload::Monolithic).await.unwrap_err();
    assert!(error.to_string().contains("no Location"), "{error}");
}

#[tokio::test]
async fn uploads_elsewhere_carry_no_credentials() {
    let elsewhere = Server::start(|_, _| reply(201, &[], "")).await;
    let place = format!("http://{}/up", elsewhere.host());
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        "" => reply(401, &[("WWW-Authenticate", "Basic realm=x")], ""),
        _ if seen.method == "HEAD" => reply(404, &[], ""),
        _ => reply(202, &[("Location", &place)], ""),
    })
    .await;
    let login =
        crate::Login::Password { username: "u".to_owned(), password: crate::Secret::new("p") };
    let source = CredentialSource::Given { host: None, login, name: "environment".to_owned() };
    let options = RegistryOptions { credentials: vec![source], ..options() };
    let repository = repository(options, &server.host());
    repository.push_blob(&Digest::of(CONTENT), &content(), Upload::Monolithic).await.unwrap();
    assert_eq!(elsewhere.seen()[0].header("authorization"), "");
    assert_eq!(elsewhere.seen()[0].body, CONTENT);
}

#[tokio::test]
async fn mounts() {
    let digest = Digest::of(CONTENT);
    let yes = Server::start(|_, _| reply(201, &[], "")).await;
    assert!(repository(options(), &yes.host()).mount_blob(&digest, "c/d").await.unwrap());
    let escaped = digest.to_string().replace(':', "%3A");
    let post = format!("POST /v2/a/b/blobs/uploads/?mount={escaped}&from=c%2Fd");
    assert_eq!(yes.lines(), [post.as_str()]);
    let no = Server::start(|seen, _| match seen.method.as_str() {
        "POST" => reply(202, &[("Location", "/up/1")], ""),
        _ => reply(204, &[], ""),
    })
    .await;
    assert!(!repository(options(), &no.host()).mount_blob(&digest, "c/d").await.unwrap());
    assert_eq!(no.lines(), [post.as_str(), "DELETE /up/1"]);
}

fn artifact() -> (Digest, Bytes) {
    let subject = Digest::of(b"subject");
    let empty = format!(
        r#"{{"mediaType":"application/x-empty","digest":"{}","size":2}}"#,
        Digest::of(b"{}")
    );
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{empty},"layers":[],
        "subject":{{"mediaType":"{MANIFEST_TYPE}","digest":"{subject}","size":1}},
        "annotations":{{"k":"v"}}}}"#
    );
    (subject, Bytes::from(text))
}

#[tokio::test]
async fn a_subject_that_the_registry_took_needs_no_tag() {
    let server = Server::start(|_, _| reply(201, &[("OCI-Subject", "x")], "")).await;
    let (_, bytes) = artifact();
    let repository = repository(options(), &server.host());
    let digest = repository.push_manifest("t", MANIFEST_TYPE, bytes.clone()).await.unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    assert_eq!(server.lines(), ["PUT /v2/a/b/manifests/t"]);
    assert_eq!(server.seen()[0].header("content-type"), MANIFEST_TYPE);
}

#[tokio::test]
async fn else_its_tag_is_kept_up() {
    let (subject, bytes) = artifact();
    let tag = format!("/v2/a/b/manifests/sha256-{}", subject.hex());
    let (path, kept) = (tag.clone(), Mutex::new(None::<Vec<u8>>));
    let server = Server::start(move |seen, _| {
        let mut kept = kept.lock().unwrap();
        match (seen.method.as_str(), seen.target == path) {
            ("PUT", true) => {
                *kept = Some(seen.body.clone());
                reply(201, &[], "")
            }
            ("GET", true) => match &*kept {
                Some(index) => reply(200, &[("Content-Type", media_type::INDEX)], index.clone()),
                None => reply(404, &[], ""),
            },
            _ => reply(201, &[], ""),
        }
    })
    .await;
    let repository = repository(options(), &server.host());
    for _ in 0..2 {
        repository.push_manifest("t", MANIFEST_TYPE, bytes.clone()).await.unwrap();
    }
    let puts: Vec<Seen> = server
        .seen()
        .into_iter()
        .filter(|seen| seen.method == "PUT" && seen.target == tag)
        .collect();
    assert_eq!(puts.len(), 1, "it is there once: {:?}", server.lines());
    let index = Index::parse(&puts[0].body).unwrap();
    let [referrer] = &index.manifests[..] else { panic!("{index:?}") };
    assert_eq!(referrer.digest, Digest::of(&bytes));
    assert_eq!(referrer.artifact_type, "application/x-empty");
    assert_eq!(referrer.annotations["k"], "v");
}
