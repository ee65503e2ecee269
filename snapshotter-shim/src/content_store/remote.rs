//! A blob that containerd alone can read.

use std::sync::Arc;

use spanfs_fetch::{Blob, FetchError, FetchErrorDetail, Fetched, Ticket, TicketControl, Want};
use spanfs_layer::Digest;
use tokio::runtime::Handle;

use crate::containerd::ContentStore;

/// Reads ranges through containerd's socket.
pub(super) struct RemoteBlob {
    pub(super) content: ContentStore,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) runtime: Handle,
}

struct Uncancelled;

impl TicketControl for Uncancelled {
    fn promote(&self, _: spanfs_fetch::Priority) {}
    fn cancel(&self) {}
}

impl Blob for RemoteBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn want(&self, want: Want) -> Ticket {
        let (content, digest) = (self.content.clone(), self.digest);
        self.runtime.spawn(async move {
            let Want { range, headroom, reply, .. } = want;
            let read = content.range(&digest, range.clone()).await;
            reply(match read {
                Ok(data) => {
                    let mut bytes = vec![0; headroom];
                    bytes.extend_from_slice(&data);
                    Ok(Fetched { bytes, headroom })
                }
                Err(error) => {
                    let message = error.to_string();
                    let detail = FetchErrorDetail { digest, range, message };
                    Err(match error.is_not_found() {
                        true => FetchError::Gone(detail),
                        false => FetchError::Unreachable(detail),
                    })
                }
            });
        });
        Ticket::new(Arc::new(Uncancelled))
    }
}
