mod faults;
mod login;
mod mirrors;
mod push;
pub(crate) mod real;
mod referrers;
pub(crate) mod server;

use std::time::Duration;

use super::*;
use server::{Reply, Seen, Server, reply};

pub(crate) const MANIFEST: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Limits of a size that tests can wait for.
pub(crate) fn limits() -> RegistryLimits {
    RegistryLimits {
        dial: Duration::from_millis(500),
        answer: Duration::from_millis(300),
        request: Duration::from_millis(600),
        operation: Duration::from_secs(5),
        tries_max: 3,
        delay_first: Duration::from_millis(5),
        delay_max: Duration::from_millis(50),
    }
}

pub(crate) fn options() -> RegistryOptions {
    RegistryOptions { limits: limits(), ..Default::default() }
}

pub(crate) fn repository(options: RegistryOptions, host: &str) -> Repository {
    let reference: Reference = format!("{host}/a/b:t").parse().unwrap();
    Registry::new(options).unwrap().repository(&reference).unwrap()
}

pub(crate) fn manifest_reply() -> Reply {
    reply(200, &[("Content-Type", MANIFEST_TYPE)], MANIFEST)
}
