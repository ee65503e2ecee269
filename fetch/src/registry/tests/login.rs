//! Challenges, tokens and where credentials go.

use super::*;
use crate::{Class, CredentialSource, Login, Secret};

fn given(username: &str, password: &str) -> RegistryOptions {
    let login = Login::Password { username: username.to_owned(), password: Secret::new(password) };
    let source = CredentialSource::Given { host: None, login, name: "environment".to_owned() };
    RegistryOptions { credentials: vec![source], ..options() }
}

fn bearer_challenge(seen: &Seen, scope: &str) -> Reply {
    let realm = format!("http://{}/token", seen.header("host"));
    let value = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"{scope}\"");
    reply(401, &[("WWW-Authenticate", &value)], r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
}

fn needs(seen: &Seen, authorization: &str, challenge: impl Fn() -> Reply) -> Reply {
    match seen.header("authorization") == authorization {
        true => manifest_reply(),
        false => challenge(),
    }
}

#[tokio::test]
async fn basic() {
    let server = Server::start(|seen, _| {
        needs(seen, "Basic dTpw", || reply(401, &[("WWW-Authenticate", "Basic realm=x")], "no"))
    })
    .await;
    let repository_of = |options| repository(options, &server.host());
    let right = repository_of(given("u", "p"));
    right.manifest("t").await.unwrap();
    right.manifest("t").await.unwrap();
    assert_eq!(server.seen().len(), 3, "the second request is authorised from the start");
    let wrong = repository_of(given("u", "hush")).manifest("t").await.unwrap_err();
    let text = format!("{wrong} {wrong:?}");
    assert!(text.contains("tried: environment") && text.contains("(no)"), "{text}");
    assert!(!text.contains("hush") && wrong.class() == Class::Refused, "{text}");
    let none = repository_of(options()).manifest("t").await.unwrap_err().to_string();
    assert!(none.contains("anonymous (no source of credentials is configured) (no)"), "{none}");
}

#[tokio::test]
async fn an_anonymous_token_by_get_serves_many_requests() {
    let server = Server::start(|seen, _| match seen.target.starts_with("/token") {
        true => reply(200, &[], r#"{"token":"t","expires_in":300}"#),
        false => needs(seen, "Bearer t", || bearer_challenge(seen, "repository:a/b:pull")),
    })
    .await;
    let repository = repository(options(), &server.host());
    for _ in 0..3 {
        repository.manifest("t").await.unwrap();
    }
    let manifest = "GET /v2/a/b/manifests/t";
    let token = "GET /token?service=s&scope=repository%3Aa%2Fb%3Apull";
    assert_eq!(server.lines(), [manifest, token, manifest, manifest, manifest]);
}

#[tokio::test]
async fn concurrent_requests_share_one_token() {
    let server = Server::start(|seen, _| match seen.target.starts_with("/token") {
        true => reply(200, &[], r#"{"token":"t"}"#),
        false => needs(seen, "Bearer t", || bearer_challenge(seen, "repository:a/b:pull")),
    })
    .await;
    let repository = repository(options(), &server.host());
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let repository = repository.clone();
            tokio::spawn(async move { repository.manifest("t").await.map(|_| ()) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(server.lines().iter().filter(|line| line.contains("/token")).count(), 1);
}

#[tokio::test]
async fn credentials_go_by_post_and_fall_back_to_get() {
    for status in [400, 401, 404, 405] {
        let server =
            Server::start(move |seen, _| match (seen.target.as_str(), seen.method.as_str()) {
                ("/token", "POST") => reply(status, &[], ""),
                (target, _) if target.starts_with("/token") => {
                    assert_eq!(seen.header("authorization"), "Basic dTpw");
                    reply(200, &[], r#"{"token":"t"}"#)
                }
                _ => needs(seen, "Bearer t", || bearer_challenge(seen, "x y")),
            })
            .await;
        repository(given("u", "p"), &server.host()).manifest("t").await.unwrap();
        let seen = server.seen();
        assert_eq!(
            String::from_utf8_lossy(&seen[1].body),
            "grant_type=password&username=u&password=p&client_id=spanfs&service=s\
             &scope=repository%3Aa%2Fb%3Apull+x+y"
        );
        assert_eq!(seen.len(), 4, "{status}");
    }
}

#[tokio::test]
async fn a_revoked_token_is_renewed_once() {
    let server = Server::start(|seen, number| match seen.target.starts_with("/token") {
        true => reply(200, &[], format!("{{\"token\":\"t{number}\"}}")),
        // Tokens are named by the request that made them: t1 is good for one request.
        false => match (seen.header("authorization"), number) {
            ("Bearer t1", 2) | ("Bearer t4", _) => manifest_reply(),
            _ => bearer_challenge(seen, "repository:a/b:pull"),
        },
    })
    .await;
    let repository = repository(options(), &server.host());
    repository.manifest("t").await.unwrap();
    repository.manifest("t").await.unwrap();
    assert_eq!(server.seen().len(), 6, "{:?}", server.lines());
}

#[tokio::test]
async fn a_token_that_never_suffices_ends_with_an_error() {
    let server = Server::start(|seen, number| match seen.target.starts_with("/token") {
        true => reply(200, &[], format!("{{\"token\":\"hush{number}\"}}")),
        false => bearer_challenge(seen, "repository:a/b:pull"),
    })
    .await;
    let error = repository(options(), &server.host()).manifest("t").await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("401 unauthorized; tried: token of"), "{text}");
    assert!(!text.contains("hush") && server.seen().len() <= 5, "{text} {:?}", server.lines());
}

#[tokio::test]
async fn faults_of_the_token_server() {
    for (token, class, needle) in [
        (reply(401, &[], r#"{"details":"wrong"}"#), Class::Refused, "tried: environment"),
        (reply(403, &[], ""), Class::Refused, "tried: environment"),
        (reply(500, &[], ""), Class::Retry, "answered 500"),
        (reply(302, &[("Location", "http://127.0.0.1:1/")], ""), Class::Refused, "302"),
        (reply(200, &[], "{}"), Class::Corrupt, "neither access_token"),
        (reply(200, &[], "hush"), Class::Corrupt, "expected a token"),
        (Reply::Stall(Vec::new()), Class::Retry, "not complete within 300ms"),
        (Reply::Cut(Vec::new()), Class::Retry, "token for manifest"),
    ] {
        let case = format!("{token:?}");
        let server = Server::start(move |seen, _| match seen.target.starts_with("/token") {
            true => token.clone(),
            false => bearer_challenge(seen, "repository:a/b:pull"),
        })
        .await;
        let error = repository(given("u", "p"), &server.host()).manifest("t").await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(needle) && error.class() == class, "{case}: {text}");
        assert!(!text.contains("hush"), "{text}");
    }
}

#[tokio::test]
async fn no_credential_leaves_for_another_host() {
    let elsewhere = Server::start(|_, _| manifest_reply()).await;
    let location = format!("http://{}/signed?X-Sig=1", elsewhere.host());
    let server = Server::start(move |seen, _| {
        if seen.header("authorization").is_empty() {
            return reply(401, &[("WWW-Authenticate", "Basic realm=x")], "");
        }
        reply(307, &[("Location", &location)], "")
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("_default");
    std::fs::create_dir(&hosts).unwrap();
    std::fs::write(hosts.join("hosts.toml"), "[header]\nx-own = \"1\"\n").unwrap();
    let options = RegistryOptions { hosts_dirs: vec![dir.path().to_owned()], ..given("u", "p") };
    repository(options, &server.host()).manifest("t").await.unwrap();
    let [first, second] = &server.seen()[..] else { panic!("{:?}", server.lines()) };
    assert_eq!((first.header("x-own"), second.header("authorization")), ("1", "Basic dTpw"));
    let [seen] = &elsewhere.seen()[..] else { panic!("{:?}", elsewhere.lines()) };
    assert_eq!((seen.header("authorization"), seen.header("x-own")), ("", ""));
    assert_eq!(seen.target, "/signed?X-Sig=1");
    assert!(!seen.header("accept").is_empty());
}
