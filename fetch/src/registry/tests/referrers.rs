//! The referrers API, its pages, and the tag that stands in for it.

use spanfs_layer::Digest;
use spanfs_layer::oci::media_type;

use super::*;
use crate::Class;

fn subject() -> Digest {
    Digest::of(b"subject")
}

fn entry(content: &str, artifact_type: &str) -> String {
    let digest = Digest::of(content.as_bytes());
    format!(
        r#"{{"mediaType":"{MANIFEST_TYPE}","digest":"{digest}","size":9,"artifactType":"{artifact_type}"}}"#
    )
}

fn index(entries: &[String]) -> String {
    let (entries, index) = (entries.join(","), media_type::INDEX);
    format!(r#"{{"schemaVersion":2,"mediaType":"{index}","manifests":[{entries}]}}"#)
}

async fn check(server: &Server, artifact_type: Option<&str>, expected: &[&str]) {
    let found = repository(options(), &server.host()).referrers(&subject(), artifact_type).await;
    let found: Vec<Digest> = found.unwrap().into_iter().map(|it| it.digest).collect();
    let expected: Vec<Digest> = expected.iter().map(|it| Digest::of(it.as_bytes())).collect();
    assert_eq!(found, expected, "{:?}", server.lines());
}

#[tokio::test]
async fn pages_are_joined_and_filtered_here_too() {
    let api = format!("/v2/a/b/referrers/{}", subject());
    let server = Server::start(move |seen, number| match number % 3 {
        0 => {
            assert!(seen.target.starts_with(&api), "{}", seen.target);
            reply(200, &[("Link", "</v2/x?page=2>; rel=\"next\"")], index(&[entry("1", "a")]))
        }
        1 => reply(200, &[("Link", "<?page=3>; rel=next")], index(&[entry("2", "b")])),
        _ => reply(200, &[], index(&[entry("3", "a")])),
    })
    .await;
    check(&server, None, &["1", "2", "3"]).await;
    check(&server, Some("a"), &["1", "3"]).await;
    let api = format!("GET /v2/a/b/referrers/{}?artifactType=a", subject());
    assert_eq!(server.lines()[3..], [api.as_str(), "GET /v2/x?page=2", "GET /v2/x?page=3"]);
}

#[tokio::test]
async fn registries_without_the_api_are_asked_by_tag() {
    for no in [
        reply(404, &[], ""),
        reply(400, &[], ""),
        reply(405, &[], ""),
        reply(501, &[], ""),
        reply(200, &[("Content-Type", "text/html")], "<html>"),
    ] {
        let tag = format!("/v2/a/b/manifests/sha256-{}", subject().hex());
        let server = Server::start(move |seen, _| match seen.target == tag {
            true => reply(200, &[], index(&[entry("1", "a"), entry("2", "b")])),
            false => no.clone(),
        })
        .await;
        check(&server, Some("b"), &["2"]).await;
    }
}

#[tokio::test]
async fn nothing_refers_to_it() {
    check(&Server::start(|_, _| reply(404, &[], "")).await, None, &[]).await;
    check(&Server::start(|_, _| reply(200, &[], index(&[]))).await, None, &[]).await;
}

#[tokio::test]
async fn errors_are_not_taken_for_nothing() {
    for (bad, class) in [
        (reply(403, &[], ""), Class::Refused),
        (reply(500, &[], ""), Class::Retry),
        (reply(200, &[("Link", "<http://127.0.0.2:9/x>; rel=next")], index(&[])), Class::Refused),
        (reply(200, &[("Link", "<?again>; rel=next")], index(&[])), Class::Refused),
    ] {
        let case = format!("{bad:?}");
        let server = Server::start(move |_, _| bad.clone()).await;
        let found = repository(options(), &server.host()).referrers(&subject(), None).await;
        assert_eq!(found.unwrap_err().class(), class, "{case}");
    }
}
