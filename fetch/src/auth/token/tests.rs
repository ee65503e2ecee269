use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

fn request(realm: &str) -> TokenRequest {
    TokenRequest {
        realm: realm.parse().unwrap(),
        service: Some("r.example".to_owned()),
        scopes: ["repository:a/b:pull", "repository:c:pull,push"].map(str::to_owned).into(),
    }
}

fn login() -> Login {
    Login::Password { username: "u&".to_owned(), password: Secret::new("p=") }
}

#[test]
fn post_is_a_form_with_all_scopes() {
    let post = request("https://t.example/token?x=1").post(Some(&login())).unwrap();
    assert_eq!(post.uri(), "https://t.example/token?x=1");
    let Content::Bytes(body) = post.body() else { panic!() };
    assert_eq!(
        std::str::from_utf8(body).unwrap(),
        "grant_type=password&username=u%26&password=p%3D&client_id=spanfs&service=r.example\
         &scope=repository%3Aa%2Fb%3Apull+repository%3Ac%3Apull%2Cpush"
    );
    let refresh = request("https://t.example").post(Some(&Login::IdentityToken(Secret::new("i"))));
    let Content::Bytes(body) = refresh.unwrap().into_body() else { panic!() };
    assert!(body.starts_with(b"grant_type=refresh_token&refresh_token=i&"));
    assert!(request("https://t.example").post(None).is_none());
}

#[test]
fn get_repeats_scopes_and_keeps_the_query() {
    let get = request("https://t.example/token?x=1").get(Some(&login())).unwrap();
    assert_eq!(
        get.uri(),
        "https://t.example/token?x=1&service=r.example&scope=repository%3Aa%2Fb%3Apull\
         &scope=repository%3Ac%3Apull%2Cpush&account=u%26"
    );
    assert_eq!(get.headers()[header::AUTHORIZATION], "Basic dSY6cD0=");
    let bare =
        TokenRequest { service: None, scopes: BTreeSet::new(), ..request("https://t.example") };
    let get = bare.get(None).unwrap();
    assert_eq!(get.uri(), "https://t.example/");
    assert!(!get.headers().contains_key(header::AUTHORIZATION));
}

fn check(body: &str, expected: Result<(&str, Option<u64>), &str>) {
    match (parse_token(body.as_bytes()), expected) {
        (Ok((value, life)), Ok((token, seconds))) => {
            assert_eq!((value.reveal(), life), (token, seconds.map(Duration::from_secs)), "{body}");
        }
        (Err(found), Err(needle)) => assert!(found.contains(needle), "{body}: {found}"),
        (found, _) => panic!("{body}: {found:?}"),
    }
}

#[test]
fn answers() {
    check(r#"{"token":"t"}"#, Ok(("t", None)));
    check(r#"{"token":"t","access_token":"a","expires_in":300}"#, Ok(("a", Some(300))));
    check(r#"{"token":"t","access_token":"","expires_in":0}"#, Ok(("t", None)));
    check(r#"{"token":"t","expires_in":-5}"#, Ok(("t", None)));
    check(r#"{"token":"t","expires_in":1e300}"#, Ok(("t", Some(LIFE_MAX.as_secs()))));
    check(r#"{"expires_in":1}"#, Err("neither"));
    check("<html>hush", Err("Syntax"));
}

#[tokio::test]
async fn one_exchange_serves_all_and_a_refused_token_is_replaced_once() {
    let service = Arc::new(TokenService::default());
    let count = Arc::new(AtomicUsize::new(0));
    let ask = |rejected: Option<Secret>| {
        let (service, count) = (service.clone(), count.clone());
        tokio::spawn(async move {
            service
                .get::<()>(&request("https://t.example"), rejected.as_ref(), async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let n = count.fetch_add(1, Ordering::SeqCst);
                    Ok((Secret::new(format!("t{n}")), None, String::new()))
                })
                .await
                .unwrap()
                .value
        })
    };
    for task in (0..10).map(|_| ask(None)).collect::<Vec<_>>() {
        assert_eq!(task.await.unwrap().reveal(), "t0");
    }
    for task in (0..10).map(|_| ask(Some(Secret::new("t0")))).collect::<Vec<_>>() {
        assert_eq!(task.await.unwrap().reveal(), "t1");
    }
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn tokens_are_renewed_before_they_expire() {
    let service = TokenService::default();
    let get = async |value: &str, life_ms| {
        let exchange = async {
            Ok::<_, ()>((Secret::new(value), Some(Duration::from_millis(life_ms)), String::new()))
        };
        service.get(&request("https://t.example"), None, exchange).await.unwrap().value
    };
    assert_eq!(get("a", 60).await.reveal(), "a");
    assert_eq!(get("b", 60).await.reveal(), "a");
    tokio::time::sleep(Duration::from_millis(52)).await;
    assert_eq!(get("c", 60_000).await.reveal(), "c");
    assert_eq!(renew_after(Duration::from_secs(300)), Duration::from_secs(270));
    assert_eq!(renew_after(Duration::from_secs(60)), Duration::from_secs(50));
}
