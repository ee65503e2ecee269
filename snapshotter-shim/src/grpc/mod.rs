//! containerd's gRPC services, served by a [`crate::snapshotter::Snapshotter`].

mod info;
pub mod listing;
mod service;
mod status;
#[cfg(test)]
mod tests;

pub use service::SnapshotsService;

use proto::snapshots::snapshots_server::SnapshotsServer;

/// What `build.rs` makes of `proto/`; the modules mirror the packages.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod proto {
    pub mod containerd {
        pub mod types {
            tonic::include_proto!("containerd.types");
        }
        pub mod services {
            pub mod content {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.content.v1");
                }
            }
            pub mod diff {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.diff.v1");
                }
            }
            pub mod images {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.images.v1");
                }
            }
            pub mod introspection {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.introspection.v1");
                }
            }
            pub mod leases {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.leases.v1");
                }
            }
            pub mod namespaces {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.namespaces.v1");
                }
            }
            pub mod snapshots {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.snapshots.v1");
                }
            }
            pub mod version {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.version.v1");
                }
            }
        }
    }
    pub use containerd::services::content::v1 as content;
    pub use containerd::services::diff::v1 as diff;
    pub use containerd::services::images::v1 as images;
    pub use containerd::services::introspection::v1 as introspection;
    pub use containerd::services::leases::v1 as leases;
    pub use containerd::services::namespaces::v1 as namespaces;
    pub use containerd::services::snapshots::v1 as snapshots;
    pub use containerd::services::version::v1 as version;
    pub use containerd::types;
}

/// containerd's limit, in both directions.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The snapshots service, ready to be added to a server.
pub fn server(service: SnapshotsService) -> SnapshotsServer<SnapshotsService> {
    SnapshotsServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
