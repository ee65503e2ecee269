use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::registry::tests::server::{Reply, Server, reply};
use crate::registry::tests::{options, repository};
use crate::{CredentialSource, Login, ProxyOptions, RegistryOptions, Secret};

fn digest() -> Digest {
    Digest::of(b"blob")
}

fn path() -> String {
    format!("/v2/a/b/blobs/{}", digest())
}

fn locator(options: RegistryOptions, host: &str) -> Arc<dyn Locate> {
    repository(options, host).locate(&digest(), &tokio::runtime::Handle::current())
}

async fn locate(
    locator: &Arc<dyn Locate>,
    failure: Option<TargetFailure>,
) -> Result<Target, LocateError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    locator.locate(failure, Box::new(|found| drop(sender.send(found))));
    tokio::time::timeout(Duration::from_secs(5), receiver).await.unwrap().unwrap()
}

fn failure(target: &Target, status: u16) -> TargetFailure {
    TargetFailure {
        id: target.id,
        status: (status > 0).then_some(status),
        challenge: None,
        location: None,
        message: format!("answered {status}"),
    }
}

fn header<'a>(target: &'a Target, wanted: &str) -> Option<&'a str> {
    target.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
}

fn given() -> RegistryOptions {
    let login = Login::Password { username: "u".to_owned(), password: Secret::new("p") };
    let source = CredentialSource::Given { host: None, login, name: "environment".to_owned() };
    RegistryOptions { credentials: vec![source], ..options() }
}

#[tokio::test]
async fn the_first_target_costs_no_request() {
    let server = Server::start(|_, _| reply(500, &[], "")).await;
    let target = locate(&locator(options(), &server.host()), None).await.unwrap();
    assert_eq!(target.host, server.host());
    assert_eq!(target.server_name, "127.0.0.1");
    assert_eq!(target.addresses, [([127, 0, 0, 1], server.port).into()]);
    assert_eq!(target.request_target, path());
    assert!(target.tls.is_none() && target.connect.is_none());
    assert_eq!(header(&target, "authorization"), None);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn challenge_redirect_expiry_and_back() {
    let server = Server::start(|_, _| reply(200, &[], r#"{"token":"t","expires_in":300}"#)).await;
    let locator = locator(given(), &server.host());
    let first = locate(&locator, None).await.unwrap();
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", server.host());
    let refused = TargetFailure { challenge: Some(challenge), ..failure(&first, 401) };
    let second = locate(&locator, Some(refused.clone())).await.unwrap();
    assert_eq!(header(&second, "authorization"), Some("Bearer t"));
    assert!(second.expires.is_some(), "the token's");
    let again = locate(&locator, Some(refused)).await.unwrap();
    assert_eq!(again.id, second.id, "a late word on an old target changes nothing");

    let location = Some("http://127.0.0.2:9/signed?X-Amz-Expires=600&sig=hush".to_owned());
    let moved = TargetFailure { location, ..failure(&second, 307) };
    let third = locate(&locator, Some(moved)).await.unwrap();
    assert_eq!(third.host, "127.0.0.2:9");
    assert_eq!(third.request_target, "/signed?X-Amz-Expires=600&sig=hush");
    assert_eq!(header(&third, "authorization"), None, "no credential leaves for another host");
    let life = third.expires.unwrap() - Instant::now();
    assert!(life > Duration::from_secs(490) && life <= Duration::from_secs(500), "{life:?}");
    assert_eq!(locate(&locator, None).await.unwrap().id, third.id, "it is kept");
    assert!(!format!("{third:?}").contains("hush"));

    let fourth = locate(&locator, Some(failure(&third, 403))).await.unwrap();
    assert_eq!(fourth.request_target, path());
    assert_eq!(header(&fourth, "authorization"), Some("Bearer t"));
    assert_eq!(server.seen().len(), 1, "one token for all of it");
}

#[tokio::test]
async fn a_url_that_expires_soon_is_not_handed_out_again() {
    let server = Server::start(|_, _| reply(500, &[], "")).await;
    let locator = locator(options(), &server.host());
    let first = locate(&locator, None).await.unwrap();
    let location = Some("http://127.0.0.2:9/signed?X-Amz-Expires=6".to_owned());
    let moved = TargetFailure { location, ..failure(&first, 307) };
    let second = locate(&locator, Some(moved)).await.unwrap();
    assert_eq!(second.host, "127.0.0.2:9");
    assert_eq!(locate(&locator, None).await.unwrap().host, server.host());
}

#[tokio::test]
async fn concurrent_failures_cause_one_token_and_one_target() {
    let server = Server::start(|_, _| reply(200, &[], r#"{"token":"t"}"#)).await;
    let locator = locator(given(), &server.host());
    let first = locate(&locator, None).await.unwrap();
    let challenge = Some(format!("Bearer realm=\"http://{}/token\"", server.host()));
    let refused = TargetFailure { challenge, ..failure(&first, 401) };
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (locator, refused) = (locator.clone(), refused.clone());
            tokio::spawn(async move { locate(&locator, Some(refused)).await.unwrap().id })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 1);
    }
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn refusals_name_the_blob_and_what_was_tried() {
    let server = Server::start(|_, _| reply(401, &[], "")).await;
    let locator = locator(options(), &server.host());
    let first = locate(&locator, None).await.unwrap();
    let challenge = Some("Basic realm=x".to_owned());
    let refused = TargetFailure { challenge, ..failure(&first, 401) };
    let error = locate(&locator, Some(refused)).await.unwrap_err();
    let LocateError::Refused(text) = &error else { panic!("{error:?}") };
    assert!(text.starts_with(&format!("blob {} of a/b: ", digest())), "{text}");
    assert!(text.contains("tried: anonymous"), "{text}");
    // A later want starts from the beginning.
    let fresh = locate(&locator, None).await.unwrap();
    let gone = locate(&locator, Some(failure(&fresh, 404))).await.unwrap_err();
    assert!(matches!(gone, LocateError::Gone(_)), "{gone:?}");
}

#[tokio::test]
async fn a_silent_token_server_ends_in_time() {
    let server = Server::start(|_, _| Reply::Stall(Vec::new())).await;
    let locator = locator(options(), &server.host());
    let first = locate(&locator, None).await.unwrap();
    let challenge = Some(format!("Bearer realm=\"http://{}/token\"", server.host()));
    let refused = TargetFailure { challenge, ..failure(&first, 401) };
    let error = locate(&locator, Some(refused)).await.unwrap_err();
    assert!(matches!(error, LocateError::Retry(_)), "{error:?}");
}

#[tokio::test]
async fn mirrors_come_first_and_fail_over() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("r.example");
    std::fs::create_dir(&hosts).unwrap();
    let text = "server = \"http://127.0.0.3:9\"\n[host.\"http://127.0.0.2:9\"]\n\
        [host.\"http://127.0.0.2:9\".header]\nx-own = \"1\"\n";
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let options = RegistryOptions { hosts_dirs: vec![dir.path().to_owned()], ..options() };
    let locator = locator(options, "r.example");
    let mirror = locate(&locator, None).await.unwrap();
    assert_eq!((mirror.host.as_str(), header(&mirror, "x-own")), ("127.0.0.2:9", Some("1")));
    assert_eq!(mirror.request_target, format!("{}?ns=r.example", path()));
    let server = locate(&locator, Some(failure(&mirror, 404))).await.unwrap();
    assert_eq!((server.host.as_str(), header(&server, "x-own")), ("127.0.0.3:9", None));
    let back = locate(&locator, Some(failure(&server, 503))).await.unwrap();
    assert_eq!(back.host, "127.0.0.2:9");
}

#[tokio::test]
async fn proxies_are_part_of_the_target() {
    let proxy = Some(Secret::new("http://u:p@127.0.0.1:3128"));
    let proxies = ProxyOptions { http: proxy.clone(), https: proxy, no_proxy: None };
    let secure = RegistryOptions { proxies, ..options() };
    let plain = RegistryOptions { plain_http: true, ..secure.clone() };
    let target = locate(&locator(secure, "r.example:5000"), None).await.unwrap();
    assert_eq!(target.addresses, [([127, 0, 0, 1], 3128).into()]);
    let authorization = Some("Basic dTpw".to_owned());
    assert_eq!(target.connect, Some(("r.example:5000".to_owned(), authorization)));
    assert!(target.tls.is_some() && target.request_target == path());
    assert_eq!(target.server_name, "r.example");
    let target = locate(&locator(plain, "r.example"), None).await.unwrap();
    assert_eq!(target.request_target, format!("http://r.example{}", path()));
    assert_eq!(header(&target, "proxy-authorization"), Some("Basic dTpw"));
    assert!(target.tls.is_none() && target.connect.is_none());
}

#[test]
fn the_end_of_the_runtime_answers_all_who_wait() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let locator = {
        let _inside = runtime.enter();
        locator(options(), "localhost:1")
    };
    let count = Arc::new(AtomicUsize::new(0));
    let ask = |locator: &Arc<dyn Locate>| {
        let count = count.clone();
        locator.locate(
            None,
            Box::new(move |found| {
                assert!(matches!(found, Err(LocateError::Retry(_))), "{found:?}");
                count.fetch_add(1, Ordering::SeqCst);
            }),
        );
    };
    ask(&locator);
    ask(&locator);
    drop(runtime);
    ask(&locator);
    assert_eq!(count.load(Ordering::SeqCst), 3);
}
