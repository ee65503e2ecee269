//! Registries that answer, and whose clock agrees with ours: tokens and certificates hang on the time.

use std::time::{Duration, SystemTime};

use spanfs_fetch::{Class, PingError, Registry, RegistryLimits, RegistryOptions};

use super::Finding;
use crate::session::registry_options;
use crate::settings::Reaching;

/// Tokens are valid for minutes, from a moment that another machine chose.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(30);

pub(super) fn look(names: &[String], reaching: &Reaching) -> Vec<Finding> {
    if names.is_empty() {
        let found = "none was named";
        let advice = "spanfs doctor REGISTRY asks it, and compares its clock";
        return vec![Finding::warning("registry", found, advice)];
    }
    let options = RegistryOptions { limits: limits(), ..registry_options(reaching) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (runtime, registry) = match (runtime, Registry::new(options)) {
        (Ok(runtime), Ok(registry)) => (runtime, registry),
        (Err(error), _) => return vec![cannot(&error)],
        (_, Err(error)) => return vec![cannot(&error)],
    };
    names.iter().flat_map(|name| runtime.block_on(ask(&registry, name))).collect()
}

/// Somebody waits at a terminal.
fn limits() -> RegistryLimits {
    let (request, operation) = (Duration::from_secs(10), Duration::from_secs(20));
    RegistryLimits { tries_max: 1, request, operation, ..RegistryLimits::default() }
}

fn cannot(error: &dyn std::error::Error) -> Finding {
    Finding::fault("registry", format!("cannot ask: {error}"), "mend the proxy settings")
}

async fn ask(registry: &Registry, name: &str) -> Vec<Finding> {
    let start = SystemTime::now();
    let answer = registry.ping(name).await;
    let took = start.elapsed().unwrap_or_default();
    match answer {
        Ok(pong) => {
            let found = format!("{name} answers in {} ms", took.as_millis());
            let mut findings = vec![Finding::ok("registry", found)];
            findings.extend(pong.date.map(|date| clock(name, date, start + took / 2)));
            findings
        }
        Err(PingError::Registry(error)) if error.class() == Class::Refused => {
            vec![Finding::warning(
                "registry",
                format!("{name} answers, but refuses: {error}"),
                "images that anybody may read are served all the same; for others log in (docker login)",
            )]
        }
        Err(error) => vec![Finding::fault(
            "registry",
            error.to_string(),
            "look at name resolution, proxy, certificates and --hosts-dir",
        )],
    }
}

fn clock(name: &str, theirs: SystemTime, ours: SystemTime) -> Finding {
    let skew = ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours));
    let skew = skew.unwrap_or_default();
    let found = format!("{} s apart from {name}", skew.as_secs());
    match skew > CLOCK_SKEW_MAX {
        true => Finding::fault("clock", found, "set the clock (timedatectl set-ntp true)"),
        false => Finding::ok("clock", found),
    }
}
