//! Who we are to registries, beside Docker's own configuration: secrets of Kubernetes, the logins that
//! CRI pulls bring, and the kubelet's credential providers.
//!
//! All of them answer by host and repository, and are asked for every login: nothing is copied, so
//! that what a cluster revokes is gone here too.

mod dispatch;
mod kubeconfig;
mod kubernetes;
mod program;
mod provider;
mod secrets;

pub use dispatch::sources;
pub use kubeconfig::KubeconfigError;
pub use kubernetes::Kubernetes;
pub use provider::{ProviderError, Providers};
