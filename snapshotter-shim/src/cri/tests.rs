use std::os::unix::fs::PermissionsExt as _;

use spanfs_fetch::{Login, Secret};

use super::keychain::Keychain;
use super::message::{self, *};
use super::*;

fn frame(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat()
}

fn pull(image: &str, auth: AuthConfig) -> Vec<u8> {
    let image = Some(ImageSpec { image: image.to_owned() });
    frame(&PullImageRequest { image, auth: Some(auth) })
}

fn password(username: &str, password: &str) -> AuthConfig {
    let (username, password) = (username.to_owned(), password.to_owned());
    AuthConfig { username, password, ..AuthConfig::default() }
}

fn learn(keychain: &Keychain, request: &[u8]) {
    let (image, login) = message::payload(request).and_then(message::pull).unwrap();
    keychain.learn(&image, login);
}

fn found(keychain: &Arc<Keychain>, host: &str, repository: &str) -> Option<Login> {
    keychain.find(host, repository)
}

fn login(username: &str, password: &str) -> Option<Login> {
    let (username, password) = (username.to_owned(), Secret::new(password));
    Some(Login::Password { username, password })
}

#[test]
fn frames() {
    let good = frame(&ImageSpec { image: "x".into() });
    assert_eq!(message::payload(&good).unwrap().len(), 3);
    for bad in
        [&good[..4], &good[..good.len() - 1], &[], &[1, 0, 0, 0, 0], &[0, 255, 255, 255, 255]]
    {
        assert!(message::payload(bad).is_none(), "{bad:?}");
    }
}

#[test]
fn credentials_are_found_for_their_image_alone() {
    let directory = tempfile::tempdir().unwrap();
    let keychain = Arc::new(Keychain::open(directory.path().join("logins")));
    learn(&keychain, &pull("r.example/team/app:1", password("u", "p")));
    learn(&keychain, &pull("alpine", password("hub", "p")));
    assert_eq!(found(&keychain, "r.example", "team/app"), login("u", "p"));
    assert_eq!(found(&keychain, "docker.io", "library/alpine"), login("hub", "p"));
    assert_eq!(found(&keychain, "r.example", "team/other"), None);
    assert_eq!(found(&keychain, "evil.example", "team/app"), None);
    // The kubelet may say which host it is for.
    let other = AuthConfig { server_address: "https://x.example/v1".into(), ..password("u", "p") };
    learn(&keychain, &pull("r.example/team/app:1", other));
    assert_eq!(found(&keychain, "r.example", "team/app"), None);
    assert_eq!(found(&keychain, "x.example", "team/app"), login("u", "p"));
}

#[test]
fn every_form_of_credentials_is_understood() {
    let directory = tempfile::tempdir().unwrap();
    let keychain = Arc::new(Keychain::open(directory.path().join("logins")));
    let check = |auth: AuthConfig, expected: Option<Login>| {
        learn(&keychain, &pull("r.example/a:1", auth));
        assert_eq!(found(&keychain, "r.example", "a"), expected);
    };
    let empty = AuthConfig::default;
    check(AuthConfig { auth: "dTpwOnE=".into(), ..empty() }, login("u", "p:q"));
    check(AuthConfig { auth: "dTpwAA==".into(), ..empty() }, login("u", "p"));
    check(AuthConfig { auth: "!".into(), ..empty() }, None);
    let token = Login::IdentityToken(Secret::new("t"));
    check(AuthConfig { identity_token: "t".into(), ..empty() }, Some(token));
    let token = Login::RegistryToken(Secret::new("t"));
    check(AuthConfig { registry_token: "t".into(), ..empty() }, Some(token));
    check(empty(), None);
}

#[test]
fn they_outlive_the_daemon_but_not_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logins");
    let keychain = Keychain::open(path.clone());
    for image in ["r.example/a:1", "r.example/b:1"] {
        learn(&keychain, &pull(image, password("u", "hush")));
    }
    keychain.name("r.example/b:1", "sha256:id");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = Arc::new(Keychain::open(path.clone()));
    assert_eq!(found(&again, "r.example", "a"), login("u", "hush"));
    again.forget("r.example/a:1");
    assert_eq!(found(&again, "r.example", "a"), None);
    // As the kubelet removes it.
    again.forget("sha256:id");
    assert_eq!(found(&again, "r.example", "b"), None);
    assert!(!std::fs::read_to_string(&path).unwrap().contains("hush"));
    std::fs::write(&path, "nonsense hush").unwrap();
    assert_eq!(found(&Arc::new(Keychain::open(path)), "r.example", "a"), None);
}
