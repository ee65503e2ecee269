use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn password(username: &str, password: &str) -> Login {
    Login::Password { username: username.to_owned(), password: Secret::new(password) }
}

async fn check(config: &str, host: &str, expected: Option<Login>) {
    let found = DockerConfig::parse(config.as_bytes())
        .unwrap()
        .find(
            Path::new("config.json"),
            host,
            &helper::Helpers { path: None, deadline: HELPER_DEADLINE },
        )
        .await
        .unwrap();
    assert_eq!(found.map(|found| found.login), expected, "{config} {host}");
}

#[tokio::test]
async fn entries_are_found_under_every_spelling() {
    let config = r#"{"auths": {
        "https://index.docker.io/v1/": {"auth": "bWU6cGE6c3M="},
        "https://old.example/v2/": {"username": "u", "password": "p"},
        "h:5000": {"identitytoken": "idt"},
        "r.example": {"registrytoken": "rt"},
        "empty.example": {}
    }, "HttpHeaders": {"ignored": "1"}}"#;
    check(config, "docker.io", Some(password("me", "pa:ss"))).await;
    check(config, "registry-1.docker.io", Some(password("me", "pa:ss"))).await;
    check(config, "old.example", Some(password("u", "p"))).await;
    check(config, "h:5000", Some(Login::IdentityToken(Secret::new("idt")))).await;
    check(config, "h", None).await;
    check(config, "r.example", Some(Login::RegistryToken(Secret::new("rt")))).await;
    check(config, "empty.example", None).await;
    check("{}", "h", None).await;
}

#[tokio::test]
async fn bad_files_are_errors_without_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    for (text, needle) in [
        ("{\"auths\": {\"h\": {\"auth\": \"hush hush\"}}}", "not base64"),
        ("{\"auths\": {\"h\": {\"auth\": \"aHVzaA==\"}}}", "not user:password"),
        ("{\"auths\": \"hush\"}", "Data error at line 1"),
        ("hush", "Syntax error at line 1"),
    ] {
        std::fs::write(&path, text).unwrap();
        let credentials = Credentials {
            sources: vec![CredentialSource::DockerConfig(path.clone())],
            helper_path: None,
        };
        let error = credentials.find("h", Role::Origin, &[]).await.unwrap_err().to_string();
        assert!(error.contains(needle) && !error.contains("hush"), "{error}");
    }
}

#[tokio::test]
async fn given_credentials_stay_with_their_host() {
    let given = |host: Option<&str>| Credentials {
        sources: vec![CredentialSource::Given {
            host: host.map(str::to_owned),
            login: password("u", "p"),
            name: "environment".to_owned(),
        }],
        helper_path: None,
    };
    let found = async |host: Option<&str>, asked: &str, role| {
        given(host).find(asked, role, &[]).await.unwrap().is_some()
    };
    assert!(found(None, "h", Role::Origin).await);
    assert!(!found(None, "m", Role::Mirror).await);
    assert!(found(Some("m"), "m", Role::Mirror).await);
    assert!(!found(Some("m"), "h", Role::Origin).await);
    assert!(found(Some("docker.io"), "registry-1.docker.io", Role::Origin).await);
}

#[tokio::test]
async fn helpers_are_real_programs_with_a_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, script: &str| {
        let path = dir.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("good", r#"printf '{"ServerURL":"s","Username":"u","Secret":"for %s"}' "$(/bin/cat)""#);
    program("token", r#"echo '{"Username":"<token>","Secret":"t"}'"#);
    program("none", "echo credentials not found in native keychain; exit 1");
    program("bad", "echo hush; exit 3");
    program("odd", "echo hush");
    program("huge", "exec /bin/dd if=/dev/zero bs=65536 count=64 2>/dev/null");
    program("slow", "exec /bin/sleep 60");
    let helpers = helper::Helpers {
        path: Some(dir.path().as_os_str()),
        deadline: Duration::from_millis(500),
    };
    let ask = async |name: &str| helpers.ask(name, "h:5000").await.map_err(|e| e.to_string());
    assert_eq!(ask("good").await, Ok(Some(password("u", "for h:5000"))));
    assert_eq!(ask("token").await, Ok(Some(Login::IdentityToken(Secret::new("t")))));
    assert_eq!(ask("none").await, Ok(None));
    for (name, needle) in [
        ("bad", "exit status: 3"),
        ("odd", "not JSON"),
        ("huge", "longer than"),
        ("slow", "no answer within 500ms"),
        ("absent", "cannot be started"),
        ("../good", "slash"),
    ] {
        let error = ask(name).await.unwrap_err();
        assert!(error.contains(needle) && !error.contains("hush"), "{error}");
    }
}

#[tokio::test]
async fn a_helper_without_entry_falls_back_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("docker-credential-none");
    std::fs::write(&helper, "#!/bin/sh\necho credentials not found; exit 1\n").unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("config.json");
    let text = r#"{"credsStore": "none", "auths": {"h": {"auth": "dTpw"}}}"#;
    std::fs::write(&path, text).unwrap();
    let credentials = Credentials {
        sources: vec![CredentialSource::DockerConfig(path)],
        helper_path: Some(dir.path().into()),
    };
    let found = credentials.find("h", Role::Origin, &[]).await.unwrap().unwrap();
    assert_eq!(found.login, password("u", "p"));
    assert!(!format!("{found:?}").contains("\"p\""), "{found:?}");
}

#[tokio::test]
async fn a_lookup_is_told_what_is_about_to_be_used() {
    let find = |host: &str, repository: &str| {
        let known = host == "docker.io" && repository == "team/app";
        std::future::ready(Ok(known.then(|| password("u", "p"))))
    };
    let lookup = CredentialLookup::new("pulls", find);
    let credentials =
        Credentials { sources: vec![CredentialSource::Lookup(lookup)], helper_path: None };
    let found = async |host: &str, repositories: &[&str]| {
        credentials.find(host, Role::Origin, repositories).await.unwrap().is_some()
    };
    assert!(found("registry-1.docker.io", &["other", "team/app"]).await);
    assert!(!found("docker.io", &["other"]).await);
    assert!(!found("docker.io", &[]).await);
    assert!(!found("mirror.example", &["team/app"]).await);
}
