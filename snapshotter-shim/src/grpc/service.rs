//! `containerd.services.snapshots.v1`: requests taken apart, answers put together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_stream::Iter;
use tonic::{Request, Response, Status};

use super::info::{info, labels, mounts};
use super::listing::Listings;
use super::proto::snapshots::snapshots_server::Snapshots;
use super::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest, MountsResponse,
    PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest,
    StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use super::status::status;
use crate::layers::Caller;
use crate::snapshotter::{Failure, Snapshotter};
use crate::state::labels::TARGET;
use crate::state::{Kind, LabelMask};

/// Layers asked for at once; more wait. Half of the threads that calls have.
const EXTRACTIONS_MAX: usize = 64;
/// When to look again for what was still in use; longer each time.
const SWEEP_DELAY_MIN: Duration = Duration::from_millis(500);
const SWEEP_DELAY_MAX: Duration = Duration::from_secs(60);
/// containerd's namespace.
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// The service. Each call runs on a thread of its own to its end, also when its caller has gone; only
/// pulls of whole layers are given up then.
#[derive(Clone)]
pub struct SnapshotsService {
    snapshotter: Arc<Snapshotter>,
    /// Extractions ask registries: they must not take all threads.
    extractions: Arc<Semaphore>,
    /// Wakes who removes directories.
    removed: Arc<Notify>,
}

impl SnapshotsService {
    /// Serve `snapshotter`, and remove directories of removed snapshots from now on.
    ///
    /// Wants to be called in a tokio runtime.
    pub fn new(snapshotter: Arc<Snapshotter>) -> Self {
        let removed = Arc::new(Notify::new());
        tokio::spawn(sweep(Arc::downgrade(&snapshotter), Arc::clone(&removed)));
        // Whatever the last run left.
        removed.notify_one();
        let extractions = Arc::new(Semaphore::new(EXTRACTIONS_MAX));
        Self { snapshotter, extractions, removed }
    }

    /// Call the snapshotter where blocking is allowed.
    async fn call<T, F>(&self, call: F) -> Result<T, Status>
    where
        F: FnOnce(&Snapshotter) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        let snapshotter = Arc::clone(&self.snapshotter);
        match tokio::task::spawn_blocking(move || call(&snapshotter)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => Err(status(&failure)),
            Err(error) => Err(Status::internal(format!("a call did not end: {error}"))),
        }
    }
}

/// Tells work on other threads when the call that it is for has ended, answered or not.
#[derive(Default)]
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Remove directories whenever there may be some to remove, as long as anyone needs the snapshotter.
async fn sweep(snapshotter: std::sync::Weak<Snapshotter>, removed: Arc<Notify>) {
    let mut again: Option<Duration> = None;
    loop {
        match again {
            None => removed.notified().await,
            // Either way it is time to look.
            Some(delay) => drop(tokio::time::timeout(delay, removed.notified()).await),
        }
        let Some(snapshotter) = snapshotter.upgrade() else { return };
        let sweep = move || (snapshotter.cleanup(), snapshotter.has_leftovers());
        match tokio::task::spawn_blocking(sweep).await {
            Ok((outcome, left)) => {
                if let Err(failure) = outcome {
                    let error = status(&failure);
                    tracing::warn!(error = %error.message(), "cannot look for directories to remove");
                }
                let longer =
                    again.map_or(SWEEP_DELAY_MIN, |delay| (delay * 2).min(SWEEP_DELAY_MAX));
                again = left.then_some(longer);
            }
            Err(error) => {
                again = None;
                tracing::error!(error = %error, "removing directories did not end");
            }
        }
    }
}

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    type ListStream = Iter<Listings>;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let namespace = request.metadata().get(NAMESPACE_HEADER);
        let namespace = namespace.and_then(|it| it.to_str().ok()).map(str::to_owned);
        let r = request.into_inner();
        tracing::debug!(key = r.key, parent = r.parent, "prepare");
        let labels = labels(r.labels);
        let turn = match labels.get(TARGET) {
            None => None,
            // It is never closed.
            Some(_) => Arc::clone(&self.extractions).acquire_owned().await.ok(),
        };
        let gone = Gone::default();
        let is_gone = Arc::clone(&gone.0);
        let create = move |s: &Snapshotter| {
            let _turn = turn;
            let caller = Caller { namespace: namespace.as_deref(), gone: Some(&is_gone) };
            s.create(&r.key, Kind::Active, &r.parent, labels, caller)
        };
        let mount = self.call(create).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts: mounts(mount) }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let r = request.into_inner();
        tracing::debug!(key = r.key, parent = r.parent, "view");
        let labels = labels(r.labels);
        let mount =
            self.call(move |s| s.create(&r.key, Kind::View, &r.parent, labels, None)).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts: mounts(mount) }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        tracing::debug!(key, "mounts");
        let mount = self.call(move |s| s.mounts(&key)).await?;
        Ok(Response::new(MountsResponse { mounts: mounts(mount) }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let r = request.into_inner();
        tracing::debug!(name = r.name, key = r.key, parent = r.parent, "commit");
        let labels = labels(r.labels);
        self.call(move |s| s.commit(&r.name, &r.key, labels, &r.parent)).await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        tracing::debug!(key, "remove");
        let removed = Arc::clone(&self.removed);
        self.call(move |s| {
            s.remove(&key)?;
            removed.notify_one();
            Ok(())
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        tracing::debug!(key, "stat");
        let snapshot = self.call(move |s| s.stat(&key)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(&snapshot)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest { info: new, update_mask, .. } = request.into_inner();
        let new = new.unwrap_or_default();
        let paths = update_mask.unwrap_or_default().paths;
        tracing::debug!(key = new.name, ?paths, "update");
        let labels = labels(new.labels);
        let update = move |s: &Snapshotter| {
            let mask = LabelMask::from_paths(&paths)?;
            s.update(&new.name, labels, mask)
        };
        let snapshot = self.call(update).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(&snapshot)) }))
    }

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        tracing::debug!(?filters, "walk");
        let snapshots = self.call(move |s| s.list(&filters)).await?;
        Ok(Response::new(tokio_stream::iter(Listings::new(snapshots))))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        tracing::debug!(key, "usage");
        let usage = self.call(move |s| s.usage(&key)).await?;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (size, inodes) = (number(usage.bytes), number(usage.inodes));
        Ok(Response::new(UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        tracing::debug!("cleanup");
        self.call(Snapshotter::cleanup).await?;
        Ok(Response::new(()))
    }
}
