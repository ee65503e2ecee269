//! Whether a registry answers.

use std::time::SystemTime;

use http::{HeaderMap, Method};

use super::exchange::Ask;
use super::{ANSWER_LEN_MAX, Registry, RegistryError};
use crate::content::Content;
use crate::hosts::{Capability, HostsError};

/// What a registry answered.
#[derive(Clone, Debug)]
pub struct Pong {
    /// Its own clock, if it told the time.
    pub date: Option<SystemTime>,
}

/// Why there was no answer to use.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// The configuration of its hosts.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// The registry itself.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl Registry {
    /// Ask a registry, by the name in front of an image's, whether it is there, with the credentials that
    /// pulls would use.
    pub async fn ping(&self, name: &str) -> Result<Pong, PingError> {
        let hosts = self.shared.hosts(name)?;
        let ask = Ask {
            what: format!("asking registry {name}"),
            method: Method::GET,
            path: String::new(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            content: Content::empty(),
            scopes: Default::default(),
            capability: Capability::Pull,
            answer_len_max: ANSWER_LEN_MAX,
        };
        let date = |answer: super::exchange::Answer| {
            Ok(answer.header("date").and_then(|text| httpdate::parse_http_date(text).ok()))
        };
        let date = self.shared.exchanger.over_hosts(&hosts, &ask, date).await?;
        Ok(Pong { date })
    }
}
