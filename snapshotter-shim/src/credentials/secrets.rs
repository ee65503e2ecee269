//! Secrets of type `kubernetes.io/dockerconfigjson`, as a cluster lists and changes them. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use spanfs_fetch::{DockerAuths, Login};

/// Secrets of the largest clusters; more are not looked at.
const SECRETS_MAX: usize = 10_000;
const KEY: &str = ".dockerconfigjson";

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct List {
    pub(super) metadata: ListMeta,
    #[serde(default)]
    pub(super) items: Vec<Secret>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) next: String,
}

#[derive(Deserialize)]
pub(super) struct Secret {
    #[serde(default)]
    pub(super) metadata: Meta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    namespace: String,
    name: String,
    pub(super) resource_version: String,
}

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Go on from this version.
    Version(String),
    /// The cluster has forgotten the version: list again.
    Gone,
}

/// Logins of all secrets, by namespace and name.
#[derive(Default)]
pub(super) struct Secrets(BTreeMap<(String, String), DockerAuths>);

impl Secrets {
    /// Take a secret, in place of an older one.
    pub(super) fn put(&mut self, secret: &Secret) {
        let key = (secret.metadata.namespace.clone(), secret.metadata.name.clone());
        let text = secret.data.get(KEY).map(|text| STANDARD.decode(text));
        let auths = match text {
            Some(Ok(text)) => DockerAuths::parse(&text),
            Some(Err(_)) => Err("not base64".to_owned()),
            None => Err(format!("it has no {KEY}")),
        };
        match auths {
            Ok(auths) if self.0.len() < SECRETS_MAX || self.0.contains_key(&key) => {
                self.0.insert(key, auths);
            }
            Ok(_) => tracing::warn!(namespace = key.0, name = key.1, "one secret too many"),
            Err(reason) => {
                self.0.remove(&key);
                tracing::warn!(
                    namespace = key.0,
                    name = key.1,
                    reason,
                    "a secret is not understood"
                );
            }
        }
    }

    /// Take a line of a watch.
    pub(super) fn handle(&mut self, event: Event) -> Result<Told, serde_json::Error> {
        if event.kind == "ERROR" {
            return Ok(Told::Gone);
        }
        let secret: Secret = serde_json::from_value(event.object)?;
        match event.kind.as_str() {
            "ADDED" | "MODIFIED" => self.put(&secret),
            "DELETED" => {
                let Meta { namespace, name, .. } = &secret.metadata;
                self.0.remove(&(namespace.clone(), name.clone()));
            }
            _ => {}
        }
        Ok(Told::Version(secret.metadata.resource_version))
    }

    /// The first login for a host: as for the peer, the namespace does not count.
    pub(super) fn find(&self, host: &str) -> Option<Login> {
        self.0.values().find_map(|auths| auths.login(host).ok().flatten())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, text: &str) -> serde_json::Value {
        let metadata =
            serde_json::json!({"namespace": "apps", "name": name, "resourceVersion": "7"});
        serde_json::json!({"metadata": metadata, "data": {KEY: STANDARD.encode(text)}})
    }

    fn event(kind: &str, object: serde_json::Value) -> Event {
        Event { kind: kind.to_owned(), object }
    }

    #[test]
    fn secrets_come_change_and_go() {
        let config = |password: &str| {
            let auth = STANDARD.encode(format!("user:{password}"));
            format!("{{\"auths\":{{\"r.example\":{{\"auth\":\"{auth}\"}}}}}}")
        };
        let mut secrets = Secrets::default();
        let told = secrets.handle(event("ADDED", secret("a", &config("one")))).unwrap();
        assert_eq!(told, Told::Version("7".to_owned()));
        let first = secrets.find("r.example").unwrap();
        assert_eq!(secrets.find("other.example"), None);
        secrets.handle(event("MODIFIED", secret("a", &config("two")))).unwrap();
        assert_ne!(secrets.find("r.example").unwrap(), first);
        // What is none takes the older one along.
        secrets.handle(event("MODIFIED", secret("a", "nonsense"))).unwrap();
        assert_eq!((secrets.find("r.example"), secrets.len()), (None, 0));
        secrets.handle(event("ADDED", secret("b", &config("one")))).unwrap();
        secrets.handle(event("DELETED", secret("b", ""))).unwrap();
        assert_eq!(secrets.len(), 0);
        let told = secrets.handle(event("BOOKMARK", secret("", ""))).unwrap();
        assert_eq!(told, Told::Version("7".to_owned()));
        assert_eq!(secrets.handle(event("ERROR", serde_json::json!({}))).unwrap(), Told::Gone);
        assert!(secrets.handle(event("ADDED", serde_json::json!("text"))).is_err());
    }
}
