//! Lazy now, whole soon: once a lazy layer is complete, its blob goes to the content store as well.
//!
//! One thread looks at all layers, and sees to one blob at a time. Nobody waits for it: it stands back
//! behind readers (`Layer::complete_blob`), and tries again later what did not work. A blob that the
//! store has from elsewhere is not fetched. A snapshot that is removed meanwhile ends the work for it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use spanfs_cache::{Content as _, Layer};
use spanfs_fetch::{Class, ImageRefError, Reference};
use spanfs_layer::Digest;

use super::note::Note;
use super::request::NAMESPACE_DEFAULT;
use super::{LayerError, Layers};
use crate::content_store::{BlobName, Kept};
use crate::daemon::log::chain;

/// Between two looks at what is complete: nobody waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// After a failure, then twice as long.
const RETRY_DELAY: Duration = Duration::from_secs(10);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(3600);
/// As the check of finished layers: below everything that somebody waits for.
const NICE: i32 = 10;

/// A blob, for one of containerd's namespaces.
type Key = (Digest, String);

/// What became of a blob so far.
enum Progress {
    Done,
    Failed { retry_at: Instant, delay: Duration },
}

impl Layers {
    /// Compressed bytes of this layer are kept, from its first span on.
    pub(super) fn keep_blob(&self, layer: &Layer) {
        if !self.completes_blobs || layer.complete_file().is_some() {
            return;
        }
        if let Err(error) = layer.keep_blob() {
            // Then its blob is fetched in the end.
            tracing::warn!(layerDigest = %layer.digest(), %error, "compressed bytes are not kept");
        }
    }

    /// Begin to look after blobs of lazy layers, where the settings say so.
    pub(super) fn complete_blobs(self: &Arc<Self>) {
        if !self.completes_blobs {
            return;
        }
        let layers = Arc::downgrade(self);
        let run = move || run(&layers);
        if let Err(error) = std::thread::Builder::new().name("blobs".to_owned()).spawn(run) {
            tracing::error!(%error, "blobs of lazy layers are not completed");
        }
    }

    fn is_ending(&self) -> bool {
        self.opener.stop.load(Ordering::Relaxed)
    }

    fn look(&self, blobs: &mut HashMap<Key, Progress>) {
        let completed = self.registry.completed();
        let keys: Vec<Key> = completed.iter().map(|(_, note, _)| key(note)).collect();
        // An image that comes back is looked at again.
        blobs.retain(|key, _| keys.contains(key));
        for ((id, note, layer), key) in completed.iter().zip(keys) {
            let delay = match blobs.get(&key) {
                Some(Progress::Done) => continue,
                Some(Progress::Failed { retry_at, .. }) if Instant::now() < *retry_at => continue,
                Some(Progress::Failed { delay, .. }) => (*delay * 2).min(RETRY_DELAY_MAX),
                None => RETRY_DELAY,
            };
            if self.is_ending() {
                return;
            }
            let progress = match self.complete_blob(*id, note, layer) {
                Ok(()) => Progress::Done,
                Err(LayerError::Cache(error)) if error.class() == Class::Cancelled => continue,
                Err(error) => {
                    let (layer, error) = (note.layer, chain(&error));
                    tracing::warn!(layerDigest = %layer, error, "a lazy layer's blob is not kept yet");
                    Progress::Failed { retry_at: Instant::now() + delay, delay }
                }
            };
            blobs.insert(key, progress);
        }
    }

    fn complete_blob(&self, id: u64, note: &Note, layer: &Layer) -> Result<(), LayerError> {
        let image: Reference = note.image.parse().map_err(ImageRefError::from)?;
        let name = BlobName {
            descriptor: note.descriptor(),
            diff_id: note.diff_id,
            manifest: note.manifest,
            host: image.host().to_owned(),
            repository: image.repository().to_owned(),
            namespace: key(note).1,
            is_held: true,
        };
        let store = self.opener.puller.store();
        if store.put(&name, None)? == Kept::Missing {
            let file = layer.complete_blob(&|| self.is_ending() || !self.registry.has(id))?;
            store.put(&name, Some(&file))?;
            let (digest, namespace) = (note.layer, &name.namespace);
            tracing::info!(layerDigest = %digest, namespace, "the blob of a lazy layer is kept");
        }
        layer.forget_blob();
        Ok(())
    }
}

fn key(note: &Note) -> Key {
    (note.layer, note.namespace.clone().unwrap_or_else(|| NAMESPACE_DEFAULT.to_owned()))
}

fn run(layers: &Weak<Layers>) {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "blobs are completed at ordinary priority");
    }
    let mut blobs = HashMap::new();
    loop {
        std::thread::sleep(LOOK_INTERVAL);
        // It ends with the daemon.
        let Some(layers) = layers.upgrade().filter(|layers| !layers.is_ending()) else { return };
        layers.look(&mut blobs);
    }
}
