//! What the link gives: a plain download of a blob by our engine from the same registry.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use spanfs_fetch::buffer::{Stream, StreamOptions};
use spanfs_fetch::{
    BlobSpec, Engine, EngineOptions, Locate, LocateError, Priority, Target, TargetFailure,
};
use spanfs_layer::Digest;

/// Compressed bytes a second.
pub(super) fn bytes_per_second(
    registry: SocketAddr,
    repository: &str,
    digest: Digest,
    file: &Path,
) -> Result<f64> {
    let size = file.metadata()?.len();
    let engine = Engine::start(EngineOptions::default())?;
    let request_target = format!("/v2/{repository}/blobs/{digest}");
    let place = Arc::new(Fixed { registry, request_target });
    let blob = engine.open(BlobSpec { digest, size }, place);
    let options = StreamOptions { priority: Priority::Prefetch, ..StreamOptions::default() };
    let start = Instant::now();
    let mut stream = Stream::new(Arc::clone(&blob), 0..size, options);
    let mut bytes = 0;
    while let Some(chunk) = stream.next_in_order() {
        let chunk = chunk.context("downloading")?;
        bytes += chunk.fetched.data().len() as u64;
        blob.recycle(chunk.fetched.bytes);
    }
    ensure!(bytes == size, "{bytes} bytes of {size}");
    Ok(size as f64 / start.elapsed().as_secs_f64())
}

/// One address, one path.
struct Fixed {
    registry: SocketAddr,
    request_target: String,
}

impl Locate for Fixed {
    fn locate(
        &self,
        _: Option<TargetFailure>,
        reply: Box<dyn FnOnce(Result<Target, LocateError>) + Send>,
    ) {
        reply(Ok(Target {
            id: 1,
            host: self.registry.to_string(),
            server_name: self.registry.ip().to_string(),
            addresses: vec![self.registry],
            request_target: self.request_target.clone(),
            headers: Vec::new(),
            tls: None,
            connect: None,
            expires: None,
        }));
    }
}
