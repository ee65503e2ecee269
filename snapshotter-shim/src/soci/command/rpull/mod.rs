//! `soci image rpull`: an image pulled by its client, as releases up to 0.4 did.
//!
//! Documents go into containerd's content store, layers are offered to the snapshotter with the labels
//! by which it finds their zTOCs. What it does not take is fetched and unpacked by containerd.

mod unpack;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use spanfs::image::{Images, ImagesOptions, read_whole};
use spanfs_fetch::{ImageRef, Priority, ResolvedImage, Source};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Platform};

use super::super::SociError;
use super::super::life::blocking;
use super::super::platforms;
use super::super::session::Session;
use super::super::store::references;
use super::push::options;
use crate::containerd::{Client, ContentWriter, ImageRecord};
use unpack::Unpacker;

const SNAPSHOTTER: &str = "soci";

pub(in crate::soci) async fn rpull(session: &Session) -> Result<(), SociError> {
    let arguments = &session.arguments;
    let [name] = arguments.positionals();
    let name = name.filter(|it| !it.is_empty());
    let name = name.ok_or_else(|| SociError::said("please provide an image reference"))?;
    let place: ImageRef =
        name.parse().map_err(|error| SociError::said(format!("{name}: {error}")))?;
    let platform = match arguments.texts("platform") {
        [] => Platform::host(),
        [text, ..] => platforms::parse(text)?,
    };
    let given = |name| arguments.text(name).filter(|it| !it.is_empty());
    let snapshotter = given("snapshotter").unwrap_or(SNAPSHOTTER).to_owned();
    let index = given("soci-index-digest").unwrap_or_default().to_owned();
    let labels = labels(arguments.texts("label"))?;
    let client = session.client().await?;
    let start = ImagesOptions { registry: options(arguments), ..ImagesOptions::default() };
    let images = blocking(move || Images::start(start).map_err(Box::new)).await?;
    let images = images.map_err(|error| failed(name, &*error))?;
    let source = images.source(&place).map_err(|error| failed(name, &error))?;
    let resolved = source.resolve(&platform).await.map_err(|error| failed(name, &error))?;
    let leased = session.leased(&client).await?;
    let puller = Puller { session, client: leased, source, name: name.to_owned() };
    let target = puller.documents(&resolved, &snapshotter).await?;
    let unpacker = Unpacker { puller: &puller, snapshotter, index };
    unpacker.unpack(&resolved).await?;
    client.images().put(&ImageRecord { name: name.to_owned(), target, labels }).await?;
    // It has threads of its own, whose end is waited for.
    blocking(move || drop(images)).await
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, SociError> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(SociError::said(format!("invalid label {text:?}, expected KEY=VALUE"))),
    };
    texts.iter().map(pair).collect()
}

fn failed(what: &str, error: &dyn std::error::Error) -> SociError {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    SociError::said(format!("{what}: {text}"))
}

/// One image on its way into containerd.
struct Puller<'a> {
    session: &'a Session,
    /// Under the lease.
    client: Client,
    source: Source,
    name: String,
}

impl Puller<'_> {
    /// Write index, manifest and config, each keeping what it names. What the name will stand for.
    async fn documents(
        &self,
        image: &ResolvedImage,
        snapshotter: &str,
    ) -> Result<Descriptor, SociError> {
        let manifest = &image.manifest;
        let top = unpack::chain_ids(image.config.diff_ids()).pop();
        let key = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
        let snapshot = top.map(|top| (key, top.to_string())).into_iter().collect();
        self.document(&manifest.config, &image.config_bytes, snapshot).await?;
        let kept = references("l", manifest.layers.iter(), Some(&manifest.config.digest));
        self.document(&image.descriptor, &image.manifest_bytes, kept).await?;
        let Some((raw, index)) = &image.index else { return Ok(image.descriptor.clone()) };
        let root = Descriptor::new(&raw.media_type, raw.digest, raw.bytes.len() as u64);
        let kept = references("m", index.manifests.iter(), None);
        self.document(&root, &raw.bytes, kept).await?;
        Ok(root)
    }

    async fn document(
        &self,
        descriptor: &Descriptor,
        bytes: &[u8],
        mut labels: BTreeMap<String, String>,
    ) -> Result<(), SociError> {
        labels.extend(self.origin());
        if self.client.content().info(&descriptor.digest).await?.is_none() {
            self.tell(descriptor);
        }
        self.client.content().put(bytes, &labels).await?;
        Ok(())
    }

    /// The label by which others find out where a blob can be had.
    fn origin(&self) -> Option<(String, String)> {
        let ImageRef::Registry(reference) = self.source.image() else { return None };
        let host = reference.host();
        // Without the port, as containerd has it.
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        let key = format!("containerd.io/distribution.source.{host}");
        Some((key, reference.repository().to_owned()))
    }

    fn tell(&self, descriptor: &Descriptor) {
        let Descriptor { digest, media_type, .. } = descriptor;
        let hex = digest.hex().to_string();
        let name = digest.algorithm().name();
        self.session.output.line(format_args!("fetching {name}:{hex:.8}... {media_type}"));
    }

    /// Fetch a layer into containerd's content store.
    async fn layer(&self, layer: &Descriptor) -> Result<(), SociError> {
        let writer = self.client.content().writer(&layer.digest, layer.size).await?;
        let Some(writer) = writer else { return Ok(()) };
        self.tell(layer);
        let blob = self.source.blob(layer).map_err(|error| failed(&self.name, &error))?;
        let (stop, bar) = (Arc::new(AtomicBool::new(false)), self.session.output.bar(layer));
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let mut writer: ContentWriter = writer;
            let read = read_whole(&*blob, Priority::OnDemand, &stop, |bytes| {
                bar.add(bytes.len() as u64);
                runtime.block_on(writer.write(bytes))
            });
            read.map(|()| writer)
        };
        let writer = blocking(work).await?.map_err(|error| failed(&self.name, &error))?;
        writer.commit(&self.origin().into_iter().collect()).await?;
        Ok(())
    }
}

/// Digest of the layers up to and with each: what snapshots are named by.
fn chain(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => *diff_id,
        Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
    }
}
