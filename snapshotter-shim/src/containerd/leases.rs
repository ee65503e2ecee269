//! Leases: what is made under one is not collected while it lives.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use spanfs_layer::Digest;
use tonic::transport::Channel;

use super::{Client, ClientError};
use crate::daemon::log::rfc3339;
use crate::grpc::proto::leases as proto;
use proto::leases_client::LeasesClient;

/// Label with the time at which a lease ends by itself.
const EXPIRE: &str = "containerd.io/gc.expire";

/// The leases of one namespace.
#[derive(Clone, Debug)]
pub struct Leases {
    pub(super) client: Client,
}

/// A lease that was made here.
#[derive(Clone, Debug)]
pub struct Lease {
    leases: Leases,
    id: String,
}

impl Leases {
    fn service(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.client.channel())
    }

    /// Make a lease that ends by itself after `time`, if we should not come to end it.
    pub async fn create(&self, id: &str, time: Duration) -> Result<Lease, ClientError> {
        let labels = BTreeMap::from([(EXPIRE.to_owned(), rfc3339(SystemTime::now() + time))]);
        let request = proto::CreateRequest { id: id.to_owned(), labels };
        let mut service = self.service();
        let what = format!("making lease {id:?}");
        self.client.call(&what, request, |it| async move { service.create(it).await }).await?;
        Ok(Lease { leases: self.clone(), id: id.to_owned() })
    }

    /// Ids of all leases.
    pub async fn list(&self) -> Result<Vec<String>, ClientError> {
        let mut service = self.service();
        let request = proto::ListRequest::default();
        let found = self
            .client
            .call("listing leases", request, |it| async move { service.list(it).await })
            .await?;
        Ok(found.leases.into_iter().map(|lease| lease.id).collect())
    }

    /// End a lease by its id. One that is gone already is fine.
    pub async fn delete(&self, id: &str, sync: bool) -> Result<(), ClientError> {
        let request = proto::DeleteRequest { id: id.to_owned(), sync };
        let mut service = self.service();
        let what = format!("ending lease {id:?}");
        let done =
            self.client.call(&what, request, |it| async move { service.delete(it).await }).await;
        match done {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn add(&self, id: &str, resource: proto::Resource) -> Result<(), ClientError> {
        let what = format!("keeping {} {} by lease {id:?}", resource.r#type, resource.id);
        let request = proto::AddResourceRequest { id: id.to_owned(), resource: Some(resource) };
        let mut service = self.service();
        self.client.call(&what, request, |it| async move { service.add_resource(it).await }).await
    }
}

impl Lease {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The client under which everything made is kept by this lease.
    pub fn client(&self) -> Result<Client, ClientError> {
        self.leases.client.with_lease(&self.id)
    }

    /// Keep a blob that is there already.
    pub async fn keep_content(&self, digest: &Digest) -> Result<(), ClientError> {
        let resource = proto::Resource { id: digest.to_string(), r#type: "content".to_owned() };
        self.leases.add(&self.id, resource).await
    }

    /// End it. With `sync`, what nothing else keeps is gone when this returns.
    pub async fn end(self, sync: bool) -> Result<(), ClientError> {
        self.leases.delete(&self.id, sync).await
    }
}
