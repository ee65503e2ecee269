//! Every way a registry can disappoint ends in an answer or an error that says it, in bounded time.

use spanfs_layer::Digest;

use super::*;
use crate::Class;

/// Ask for a manifest from a server that replies as told, in turn (the last reply repeats).
async fn check(replies: Vec<Reply>, expected: Result<(), (Class, &str)>, expected_requests: usize) {
    let server =
        Server::start(move |_, number| replies[number.min(replies.len() - 1)].clone()).await;
    let started = std::time::Instant::now();
    let found = repository(options(), &server.host()).manifest("t").await;
    match (&found, &expected) {
        (Ok(manifest), Ok(())) => {
            assert_eq!(manifest.bytes, MANIFEST);
            assert_eq!(manifest.media_type, MANIFEST_TYPE);
            assert_eq!(manifest.digest, Digest::of(MANIFEST.as_bytes()));
        }
        (Err(error), Err((class, needle))) => {
            let text = error.to_string();
            assert!(text.contains(needle) && error.class() == *class, "{text} {:?}", error.class());
            assert!(text.starts_with(&format!("manifest t of a/b at {}", server.host())), "{text}");
        }
        _ => panic!("{expected:?}, found {found:?}"),
    }
    assert_eq!(server.seen().len(), expected_requests, "{expected:?}: {:?}", server.lines());
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_good_answer() {
    check(vec![manifest_reply()], Ok(()), 1).await;
    let digest = Digest::of(MANIFEST.as_bytes()).to_string();
    check(vec![reply(200, &[("Docker-Content-Digest", &digest)], MANIFEST)], Ok(()), 1).await;
}

#[tokio::test]
async fn refusals_are_final() {
    let denied = r#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#;
    let want = Err((Class::Refused, "403 forbidden (DENIED: not yours)"));
    check(vec![reply(403, &[], denied)], want, 1).await;
    check(vec![reply(404, &[], "")], Err((Class::Gone, "not found")), 1).await;
    check(vec![reply(418, &[], "tea")], Err((Class::Refused, "unexpected answer 418")), 1).await;
    check(
        vec![reply(401, &[], "")],
        Err((Class::Refused, "401 unauthorized; tried: anonymous")),
        1,
    )
    .await;
}

#[tokio::test]
async fn busy_servers_are_asked_again() {
    let busy = |status| reply(status, &[("Retry-After", "0")], "");
    check(vec![busy(429), busy(503), manifest_reply()], Ok(()), 3).await;
    check(vec![busy(500), manifest_reply()], Ok(()), 2).await;
    let want = Err((Class::Retry, "answered 500"));
    check(vec![busy(500)], want, 3).await;
    // 501 says that it never will.
    check(vec![busy(501)], Err((Class::Refused, "501")), 1).await;
}

#[tokio::test]
async fn retry_after_beyond_the_deadline_ends_the_operation() {
    let server = Server::start(|_, _| reply(429, &[("Retry-After", "3600")], "")).await;
    let limits = RegistryLimits { delay_max: Duration::from_secs(3600), ..limits() };
    let options = RegistryOptions { limits, ..Default::default() };
    let error = repository(options, &server.host()).manifest("t").await.unwrap_err();
    assert_eq!((error.class(), server.seen().len()), (Class::Retry, 1), "{error}");
}

#[tokio::test]
async fn broken_connections_are_replaced() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MANIFEST.len());
    let truncated = Reply::Cut([head.as_bytes(), &MANIFEST.as_bytes()[..20]].concat());
    check(vec![Reply::Cut(Vec::new()), truncated.clone(), manifest_reply()], Ok(()), 3).await;
    check(vec![truncated], Err((Class::Retry, "body broke off after 20 bytes")), 3).await;
    check(vec![Reply::Cut(b"SSH-2.0\r\n\r\n".to_vec())], Err((Class::Retry, "")), 3).await;
}

#[tokio::test]
async fn silence_and_slow_loris_run_into_deadlines() {
    check(vec![Reply::Stall(Vec::new()), manifest_reply()], Ok(()), 2).await;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MANIFEST.len());
    let stalled = Reply::Stall([head.as_bytes(), b"{\"s"].concat());
    check(vec![stalled], Err((Class::Retry, "not complete within 600ms")), 3).await;
    let whole = [head.as_bytes(), MANIFEST.as_bytes()].concat();
    let loris = Reply::Trickle(whole, Duration::from_millis(20));
    check(vec![loris], Err((Class::Retry, "not complete within")), 3).await;
}

#[tokio::test]
async fn bytes_that_are_not_as_promised() {
    let digest = Digest::of(b"other").to_string();
    let lying = reply(200, &[("Docker-Content-Digest", &digest)], MANIFEST);
    check(vec![lying.clone(), manifest_reply()], Ok(()), 2).await;
    check(vec![lying], Err((Class::Corrupt, &format!("expected {digest}, found"))), 3).await;
    check(vec![reply(200, &[], "<html>")], Err((Class::Corrupt, "expected a JSON manifest")), 3)
        .await;
    let conflict =
        reply(200, &[("Content-Type", "application/vnd.oci.image.index.v1+json")], MANIFEST);
    check(vec![conflict], Err((Class::Corrupt, "media type")), 3).await;
    let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u64::MAX / 2);
    check(vec![Reply::Stall(huge.into())], Err((Class::Corrupt, "at most 8388608 bytes")), 3).await;
}

#[tokio::test]
async fn redirects_are_followed_within_reason() {
    check(vec![reply(307, &[("Location", "/elsewhere")], ""), manifest_reply()], Ok(()), 2).await;
    let around = vec![reply(302, &[("Location", "/v2/a/b/manifests/t")], "")];
    check(around, Err((Class::Refused, "more than 10 redirects")), 11).await;
    check(
        vec![reply(307, &[("Location", "file:///etc/passwd")], "")],
        Err((Class::Refused, "file URL is refused")),
        1,
    )
    .await;
    check(vec![reply(307, &[], "")], Err((Class::Refused, "unexpected answer 307")), 1).await;
}

#[tokio::test]
async fn a_blob_must_match_its_digest_and_its_limit() {
    let server = Server::start(|_, _| reply(200, &[], "blob")).await;
    let repository = repository(options(), &server.host());
    assert_eq!(repository.blob_bytes(&Digest::of(b"blob"), 4).await.unwrap(), "blob");
    let wrong = repository.blob_bytes(&Digest::of(b"blub"), 4).await.unwrap_err();
    assert_eq!(wrong.class(), Class::Corrupt, "{wrong}");
    let long = repository.blob_bytes(&Digest::of(b"blob"), 3).await.unwrap_err();
    assert!(long.to_string().contains("at most 3 bytes"), "{long}");
    for seen in server.seen() {
        assert_eq!(seen.header("accept-encoding"), "identity");
        assert!(seen.header("user-agent").starts_with("spanfs/"));
    }
}

#[tokio::test]
async fn a_closed_port_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = repository(options(), &host).manifest("t").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("connecting to {host}")) && text.contains("refused"), "{text}");
    assert_eq!(error.class(), Class::Retry);
}

#[tokio::test]
async fn head_falls_back_to_get() {
    let server = Server::start(|seen, _| match seen.method.as_str() {
        "HEAD" => reply(405, &[], ""),
        _ => manifest_reply(),
    })
    .await;
    let found = repository(options(), &server.host()).manifest_digest("t").await.unwrap();
    assert_eq!(found, Some(Digest::of(MANIFEST.as_bytes())));
    let empty = Server::start(|_, _| reply(404, &[], "")).await;
    assert_eq!(repository(options(), &empty.host()).manifest_digest("t").await.unwrap(), None);
}
