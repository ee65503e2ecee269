//! containerd's gRPC services, served by a [`crate::snapshotter::Snapshotter`].

mod info;
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
            pub mod snapshots {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.snapshots.v1");
                }
            }
        }
    }
    pub use containerd::services::snapshots::v1 as snapshots;
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
