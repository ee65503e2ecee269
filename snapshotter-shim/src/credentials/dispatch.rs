//! Sources of credentials in their order, as the fetcher asks them.

use std::sync::Arc;

use spanfs_fetch::{CredentialLookup, CredentialsError};

use super::{Kubernetes, Providers};
use crate::cri::Keychain;

/// Those that there are, in the peer's order; the providers, which only we ask, come last.
pub fn sources(
    kubernetes: Option<Arc<Kubernetes>>,
    pulls: Option<&Arc<Keychain>>,
    providers: Option<Providers>,
) -> Vec<CredentialLookup> {
    let secrets = kubernetes.map(|kubernetes| {
        CredentialLookup::new("secrets of Kubernetes", move |host, _| {
            let (kubernetes, host) = (Arc::clone(&kubernetes), host.to_owned());
            async move { Ok(kubernetes.find(&host).await) }
        })
    });
    let providers = providers.map(Arc::new).map(|providers| {
        CredentialLookup::new("credential providers", move |host, repository| {
            let (providers, image) = (Arc::clone(&providers), format!("{host}/{repository}"));
            let server = host.to_owned();
            async move {
                let failed =
                    |(program, reason)| CredentialsError::Helper { program, server, reason };
                providers.find(&image).await.map_err(failed)
            }
        })
    });
    secrets.into_iter().chain(pulls.map(Keychain::lookup)).chain(providers).collect()
}
