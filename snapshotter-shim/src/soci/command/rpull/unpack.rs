//! Layers into snapshots: offered to the snapshotter first, unpacked where it does not take them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use spanfs_fetch::ResolvedImage;
use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;
use tonic::transport::Channel;

use super::super::super::SociError;
use super::{Puller, chain};
use crate::containerd::{ClientError, Fault};
use crate::grpc::MESSAGE_BYTES_MAX;
use crate::grpc::proto::diff::diff_client::DiffClient;
use crate::grpc::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::grpc::proto::{diff, snapshots, types};

/// containerd's limit on a label, key and value together.
const LABEL_LEN_MAX: usize = 4096;

const REF: &str = "containerd.io/snapshot.ref";
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";
const LAYER_SIZES: &str = "containerd.io/snapshot/remote/image.layers.size";
const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";

pub(super) struct Unpacker<'a> {
    pub(super) puller: &'a Puller<'a>,
    pub(super) snapshotter: String,
    /// SOCI index that was asked for, or empty.
    pub(super) index: String,
}

/// Names of the snapshots of an image, the lowest first.
pub(super) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let next = |parent: &mut Option<Digest>, diff_id: &Digest| {
        *parent = Some(chain(parent.as_ref(), diff_id));
        *parent
    };
    diff_ids.iter().scan(None, next).collect()
}

impl Unpacker<'_> {
    pub(super) async fn unpack(&self, image: &ResolvedImage) -> Result<(), SociError> {
        let layers = image.layers();
        let diff_ids = image.config.diff_ids();
        let mut parent = String::new();
        for (number, name) in chain_ids(diff_ids).iter().enumerate() {
            let (Some(above), Some(diff_id)) = (layers.get(number..), diff_ids.get(number)) else {
                break; // there is a diffID for each layer: the image was checked
            };
            let labels = self.labels(&image.descriptor.digest, above, name);
            self.layer(above, diff_id, name, &parent, labels).await?;
            parent = name.to_string();
        }
        Ok(())
    }

    async fn layer(
        &self,
        above: &[Descriptor],
        diff_id: &Digest,
        name: &Digest,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), SociError> {
        if self.is_there(name).await? {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let key = format!("extract-{}-{} {name}", now.subsec_nanos(), std::process::id());
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels,
        };
        let mut service = self.snapshots();
        let what = format!("preparing a snapshot for {name}");
        let client = &self.puller.client;
        match client.call(&what, request, |it| async move { service.prepare(it).await }).await {
            // The snapshotter took the layer, or somebody else has unpacked it meanwhile.
            Err(error) if error.fault() == Some(Fault::AlreadyExists) => {
                match self.is_there(name).await? {
                    true => Ok(()),
                    false => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
            Ok(prepared) => {
                let Some(layer) = above.first() else { return Ok(()) };
                let done = self.apply(layer, diff_id, prepared.mounts, &key, name).await;
                if done.is_err() {
                    self.remove(&key).await;
                }
                done
            }
        }
    }

    async fn apply(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        mounts: Vec<types::Mount>,
        key: &str,
        name: &Digest,
    ) -> Result<(), SociError> {
        self.puller.layer(layer).await?;
        let client = &self.puller.client;
        let request =
            diff::ApplyRequest { diff: Some(crate::containerd::message_of(layer)), mounts };
        // Unpacking takes as long as it takes: containerd ends it when we go.
        let mut service = DiffClient::new(client.channel());
        let applied = service.apply(client.request(request, None)).await;
        let what = format!("unpacking layer {}", layer.digest);
        let applied = applied.map_err(|status| ClientError::of(&what, &status))?.into_inner();
        let found = applied.applied.unwrap_or_default().digest;
        if found != diff_id.to_string() {
            let text = format!("layer {}: its tar is {found}, expected {diff_id}", layer.digest);
            return Err(SociError::said(text));
        }
        let request = snapshots::CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_string(),
            key: key.to_owned(),
            labels: BTreeMap::from([(REF.to_owned(), name.to_string())]),
            ..snapshots::CommitSnapshotRequest::default()
        };
        let mut service = self.snapshots();
        let what = format!("committing snapshot {name}");
        let done = client.call(&what, request, |it| async move { service.commit(it).await }).await;
        match done {
            // Somebody else was faster: ours is of no use.
            Err(error) if error.fault() == Some(Fault::AlreadyExists) => {
                self.remove(key).await;
                Ok(())
            }
            done => Ok(done?),
        }
    }

    async fn is_there(&self, name: &Digest) -> Result<bool, SociError> {
        let request = snapshots::StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: name.to_string(),
        };
        let mut service = self.snapshots();
        let client = &self.puller.client;
        let what = format!("looking up snapshot {name}");
        match client.call(&what, request, |it| async move { service.stat(it).await }).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Without effect on what is told: the lease ends it otherwise.
    async fn remove(&self, key: &str) {
        let request = snapshots::RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        };
        let mut service = self.snapshots();
        let client = &self.puller.client;
        let done = client.call("removing", request, |it| async move { service.remove(it).await });
        if let Err(error) = done.await {
            tracing::debug!(%error, key, "a snapshot stays behind until its lease ends");
        }
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.puller.client.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The labels by which a snapshotter finds a layer's zTOC; lists are of this layer and those above.
    fn labels(
        &self,
        manifest: &Digest,
        above: &[Descriptor],
        name: &Digest,
    ) -> BTreeMap<String, String> {
        let digests = list(IMAGE_LAYERS, above, |it| it.digest.to_string());
        let listed = digests.split(',').count();
        let sized = above.get(..listed.min(above.len())).unwrap_or_default();
        let sizes: Vec<String> = sized.iter().map(|it| it.size.to_string()).collect();
        let layer = above.first();
        let pairs = [
            (REF, name.to_string()),
            (IMAGE_REF, self.puller.name.clone()),
            (MANIFEST_DIGEST, manifest.to_string()),
            (LAYER_DIGEST, layer.map(|it| it.digest.to_string()).unwrap_or_default()),
            (IMAGE_LAYERS, digests),
            (LAYER_SIZE, layer.map(|it| it.size.to_string()).unwrap_or_default()),
            (LAYER_SIZES, sizes.join(",")),
            (INDEX_DIGEST, self.index.clone()),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
    }
}

/// Texts of as many layers as fit into a label.
fn list(key: &str, layers: &[Descriptor], text: impl Fn(&Descriptor) -> String) -> String {
    let mut list = String::new();
    for layer in layers {
        let text = text(layer);
        let comma = usize::from(!list.is_empty());
        if key.len() + list.len() + comma + text.len() > LABEL_LEN_MAX {
            break;
        }
        if comma > 0 {
            list.push(',');
        }
        list.push_str(&text);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_named_by_all_layers_below() {
        let ids = [Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c")];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], ids[2]).as_bytes()));
    }

    #[test]
    fn lists_fit_into_a_label() {
        let layers: Vec<Descriptor> = (0..100_u8).map(|n| Descriptor::of("", &[n])).collect();
        let text = list(IMAGE_LAYERS, &layers, |it| it.digest.to_string());
        assert!(IMAGE_LAYERS.len() + text.len() <= LABEL_LEN_MAX);
        assert_eq!(text.split(',').count(), 56);
        assert!(layers.iter().zip(text.split(',')).all(|(it, text)| it.digest.to_string() == text));
    }
}
