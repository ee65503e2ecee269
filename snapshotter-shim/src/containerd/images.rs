//! containerd's image records.

use std::collections::BTreeMap;

use spanfs_layer::oci::Descriptor;

use super::{Client, ClientError, Fault};
use crate::grpc::MESSAGE_BYTES_MAX;
use crate::grpc::proto::{images as proto, types};
use proto::images_client::ImagesClient;
use tonic::transport::Channel;

/// The image records of one namespace.
#[derive(Clone, Debug)]
pub struct Images {
    pub(super) client: Client,
}

/// A name, and the content that it stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRecord {
    /// Reference, as it was pulled.
    pub name: String,
    /// Manifest or index; only media type, digest, size and annotations are kept.
    pub target: Descriptor,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Images {
    fn service(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.client.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The image of a name. One that is not there is [`Fault::NotFound`].
    pub async fn get(&self, name: &str) -> Result<ImageRecord, ClientError> {
        let request = proto::GetImageRequest { name: name.to_owned() };
        let mut service = self.service();
        let what = format!("looking up image {name:?}");
        let found =
            self.client.call(&what, request, |it| async move { service.get(it).await }).await?;
        read(found.image.unwrap_or_default())
    }

    /// All images that a filter selects; no filter selects all.
    pub async fn list(&self, filters: &[&str]) -> Result<Vec<ImageRecord>, ClientError> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = proto::ListImagesRequest { filters };
        let mut service = self.service();
        let found = self
            .client
            .call("listing images", request, |it| async move { service.list(it).await })
            .await?;
        found.images.into_iter().map(read).collect()
    }

    /// Add a record. One that is there is [`Fault::AlreadyExists`].
    pub async fn create(&self, image: &ImageRecord) -> Result<(), ClientError> {
        let request =
            proto::CreateImageRequest { image: Some(message(image)), source_date_epoch: None };
        let mut service = self.service();
        let what = format!("creating image {:?}", image.name);
        self.client.call(&what, request, |it| async move { service.create(it).await }).await?;
        Ok(())
    }

    /// Change a record: the given fields (`target`, `labels`, `labels.KEY`).
    pub async fn update(&self, image: &ImageRecord, fields: &[&str]) -> Result<(), ClientError> {
        let paths = fields.iter().map(|&field| field.to_owned()).collect();
        let request = proto::UpdateImageRequest {
            image: Some(message(image)),
            update_mask: Some(prost_types::FieldMask { paths }),
            source_date_epoch: None,
        };
        let mut service = self.service();
        let what = format!("changing image {:?}", image.name);
        self.client.call(&what, request, |it| async move { service.update(it).await }).await?;
        Ok(())
    }

    /// Make a name stand for `image`'s target, whether it is there or not. Labels are only given to
    /// a new record.
    pub async fn put(&self, image: &ImageRecord) -> Result<(), ClientError> {
        match self.create(image).await {
            Err(error) if error.fault() == Some(Fault::AlreadyExists) => {
                self.update(image, &["target"]).await
            }
            done => done,
        }
    }

    /// Delete a record. False if it was not there. With `sync` the garbage collection is waited for.
    pub async fn delete(&self, name: &str, sync: bool) -> Result<bool, ClientError> {
        let request = proto::DeleteImageRequest { name: name.to_owned(), sync };
        let mut service = self.service();
        let what = format!("deleting image {name:?}");
        let done =
            self.client.call(&what, request, |it| async move { service.delete(it).await }).await;
        match done {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn read(image: proto::Image) -> Result<ImageRecord, ClientError> {
    let target = image.target.unwrap_or_default();
    let corrupt = |expected: &str, found: String| ClientError::Corrupt {
        what: format!("reading image {:?}", image.name),
        expected: expected.to_owned(),
        found,
    };
    let digest = target.digest.parse().map_err(|_| corrupt("a digest", target.digest.clone()))?;
    let size =
        u64::try_from(target.size).map_err(|_| corrupt("a size", target.size.to_string()))?;
    let mut descriptor = Descriptor::new(&target.media_type, digest, size);
    descriptor.annotations = target.annotations;
    Ok(ImageRecord { name: image.name, target: descriptor, labels: image.labels })
}

fn message(image: &ImageRecord) -> proto::Image {
    proto::Image {
        name: image.name.clone(),
        labels: image.labels.clone(),
        target: Some(descriptor(&image.target)),
        created_at: None,
        updated_at: None,
    }
}

/// A descriptor as containerd's API has it.
pub(crate) fn descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone(),
    }
}
