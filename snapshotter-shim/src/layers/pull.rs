//! How a layer is pulled whole: within which limits, by what decoder, and where its blob goes.
//!
//! A chunk takes a slot of its image and one of the node until it has come, and memory until it is in
//! its file; a layer takes both kinds of slots while it is decoded. The peer's settings count the same.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use spanfs::image::{ImageError, OpenLayer, Pull};
use spanfs_cache::{Buffer, Program};
use spanfs_fetch::buffer::{Place, Slots, StreamOptions};
use spanfs_fetch::{Priority, Source};
use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;

use super::open::Opener;
use super::{LayerError, Request};
use crate::config::{ParallelPull, Settings};
use crate::content_store::{BlobName, ContentStore, Kept};
use crate::daemon::log::chain;

/// Where the settings name none: 4 MiB take seven times a round trip of 10 ms at 500 Mbit/s.
const CHUNK_LEN: u64 = 4 << 20;
/// Shorter chunks would cost more in requests than they could bring.
const CHUNK_LEN_MIN: u64 = 64 << 10;
/// The engine cuts longer ones.
const CHUNK_LEN_MAX: u64 = 8 << 20;
/// Chunks that a blob is cut into at least, if they do not get too short by that: the decoder begins with
/// the first of them, which shares the link with all that are under way. Measured at 10 ms, 2 Gbit/s,
/// 10 requests at once: with 1 MiB for 8 MiB, pulls of 54 and 72 MB take 0.76 of the time.
const CHUNKS_MIN: u64 = 64;
/// Bytes under way that keep a link busy over its round trips.
const UNDER_WAY_BYTES: u64 = 10 << 20;
/// Chunks of all layers that are on their way to their files.
const MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Chunks of one layer under way, where the settings set no limit.
const CHUNKS_MAX: usize = 16;
/// Ranges at once of small layers of an image: each takes little but a round trip.
const FEW_DOWNLOADS: usize = 8;
/// Small layers of an image that are decoded at once: each waits for its disk more than for a core.
const FEW_UNPACKS: usize = 8;
/// A decoder does hundreds of megabytes in that time.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(60);

/// Everything that pulls of whole layers share.
pub(super) struct Puller {
    chunk_len: u64,
    memory: Arc<Slots>,
    downloads: Option<Arc<Slots>>,
    unpacks: Option<Arc<Slots>>,
    downloads_max: Option<u32>,
    downloads_per_image: Option<u32>,
    unpacks_per_image: Option<u32>,
    images: Mutex<HashMap<Digest, Weak<OfImage>>>,
    /// Images pulled so far.
    image_count: AtomicU64,
    programs: BTreeMap<String, Program>,
    /// Layers pulled in this mode leave no blob behind.
    discard: bool,
    /// They leave a zTOC behind.
    ztoc: bool,
    /// Blobs of lazy images are kept with them.
    holds: bool,
    store: Arc<ContentStore>,
}

/// Limits of one image.
pub(super) struct OfImage {
    /// Images pulled before it.
    number: u64,
    downloads: Vec<Arc<Slots>>,
    unpacks: Vec<Arc<Slots>>,
}

/// Layers of an image, at most.
const POSITIONS_MAX: u64 = 1 << 16;

impl OfImage {
    /// For layers that can't be lazy, of an image whose other layers are.
    pub(super) fn of_few() -> Arc<Self> {
        let slots = |limit| vec![Slots::new(limit)];
        let (downloads, unpacks) = (slots(FEW_DOWNLOADS), slots(FEW_UNPACKS));
        Arc::new(Self { number: 0, downloads, unpacks })
    }

    /// For layers that don't count.
    pub(super) fn unlimited() -> Arc<Self> {
        Arc::new(Self { number: 0, downloads: Vec::new(), unpacks: Vec::new() })
    }

    /// Places in line for the decoding of the layer at `position`: the lowest goes first, as containerd
    /// waits for it, and nobody above it waits for bytes in a slot that it could use.
    pub(super) fn line_up(&self, position: usize) -> Vec<Place> {
        let rank = self.number * POSITIONS_MAX + (position as u64).min(POSITIONS_MAX - 1);
        self.unpacks.iter().map(|slots| slots.line_up(rank)).collect()
    }
}

/// What the content store is to know of a layer's blob.
pub(super) fn blob_name(descriptor: &Descriptor, diff_id: Digest, request: &Request) -> BlobName {
    BlobName {
        descriptor: descriptor.clone(),
        diff_id,
        manifest: request.manifest,
        host: request.image.host().to_owned(),
        repository: request.image.repository().to_owned(),
        namespace: request.namespace().to_owned(),
        is_held: false,
    }
}

/// A layer to be pulled.
pub(super) struct Task {
    pub(super) source: Source,
    pub(super) name: BlobName,
    /// In the mode of whole layers, with its settings.
    pub(super) is_parallel: bool,
    pub(super) of_image: Arc<OfImage>,
    /// In line to be decoded.
    pub(super) places: Vec<Place>,
    /// Ends it.
    pub(super) stop: Arc<AtomicBool>,
}

impl Puller {
    pub(super) fn new(settings: &Settings, store: Arc<ContentStore>) -> Result<Self, LayerError> {
        let parallel = settings.pull_modes.parallel.as_ref();
        let chunk_len = parallel.and_then(|it| it.chunk_len).unwrap_or(CHUNK_LEN);
        let chunk_len = chunk_len.clamp(CHUNK_LEN_MIN, CHUNK_LEN_MAX);
        let slots = |limit: Option<u32>| limit.map(|limit| Slots::new(limit as usize));
        let program = |(algorithm, program): (&String, &crate::config::DecompressProgram)| {
            // What a link points to later is not what the administrator looked at.
            let path = program.path.canonicalize().map_err(LayerError::disk(&program.path))?;
            check_program(&path).map_err(LayerError::disk(&path))?;
            let args = program.args.clone();
            Ok((algorithm.clone(), Program { path, args, patience: PROGRAM_PATIENCE }))
        };
        let programs = parallel.into_iter().flat_map(|it| &it.programs).map(program);
        let programs: BTreeMap<_, _> = programs.collect::<Result<_, LayerError>>()?;
        if let Some(parallel) = parallel {
            // The peer's words.
            tracing::info!(limits = ?parallel, "Parallel image pull enabled");
        }
        let of_all = |limit: fn(&ParallelPull) -> Option<u32>| parallel.and_then(limit);
        Ok(Self {
            chunk_len,
            memory: Slots::new((MEMORY_BYTES_MAX / chunk_len) as usize),
            downloads: slots(of_all(|it| it.downloads_max)),
            unpacks: slots(of_all(|it| it.unpacks_max)),
            downloads_max: of_all(|it| it.downloads_max),
            downloads_per_image: of_all(|it| it.downloads_per_image_max),
            unpacks_per_image: of_all(|it| it.unpacks_per_image_max),
            images: Mutex::default(),
            image_count: AtomicU64::new(0),
            programs,
            discard: parallel.is_some_and(|it| it.discard),
            ztoc: settings.ztoc_from_full_pull,
            holds: settings.complete_blobs,
            store,
        })
    }

    /// Limits of an image, the same for all who pull it.
    pub(super) fn of_image(&self, manifest: &Digest) -> Arc<OfImage> {
        let mut images = self.images.lock();
        images.retain(|_, image| image.strong_count() > 0);
        if let Some(image) = images.get(manifest).and_then(Weak::upgrade) {
            return image;
        }
        let limits = |all: &Option<Arc<Slots>>, one: Option<u32>| {
            let one = one.map(|limit| Slots::new(limit as usize));
            one.into_iter().chain(all.clone()).collect()
        };
        let image = Arc::new(OfImage {
            number: self.image_count.fetch_add(1, Ordering::Relaxed),
            downloads: limits(&self.downloads, self.downloads_per_image),
            unpacks: limits(&self.unpacks, self.unpacks_per_image),
        });
        images.insert(*manifest, Arc::downgrade(&image));
        image
    }

    pub(super) fn store(&self) -> &Arc<ContentStore> {
        &self.store
    }

    /// Bytes of a chunk of a blob of `size`: what the settings say, or less where that is enough.
    fn chunk_len(&self, size: u64) -> u64 {
        let limits = [self.downloads_max, self.downloads_per_image];
        let requests = limits.into_iter().flatten().min().unwrap_or(u32::MAX);
        let requests = u64::from(requests).clamp(1, CHUNKS_MAX as u64);
        let enough = (size / CHUNKS_MIN).max(UNDER_WAY_BYTES / requests);
        self.chunk_len.min(enough.next_multiple_of(1 << 20))
    }

    fn stream(&self, of_image: &OfImage, size: u64) -> StreamOptions {
        StreamOptions {
            chunk_bytes: self.chunk_len(size),
            chunks_max: CHUNKS_MAX,
            requests: of_image.downloads.clone(),
            memory: Some(Arc::clone(&self.memory)),
            // A request a chunk, as the limits count; and reads of lazy layers go first.
            priority: Priority::Prefetch,
            ..StreamOptions::default()
        }
    }

    fn program(&self, media_type: &str) -> Option<&Program> {
        let algorithm = match media_type {
            it if it.ends_with("+gzip") || it.ends_with(".tar.gzip") => "gzip",
            it if it.ends_with("+zstd") => "zstd",
            _ => return None,
        };
        self.programs.get(algorithm)
    }
}

/// As the peer looks at it.
fn check_program(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = path.metadata()?;
    let wrong = |problem| Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, problem));
    match metadata.permissions().mode() {
        _ if !metadata.is_file() => wrong("it is no program but something else"),
        mode if mode & 0o111 == 0 => wrong("it can't be executed"),
        _ => Ok(()),
    }
}

impl Opener {
    /// Pull a layer whole, unless it is there. Its blob is kept where the settings say so; that it
    /// can't be kept is told in the log alone: the layer is there.
    pub(super) fn pull(&self, task: &Task) -> Result<OpenLayer, ImageError> {
        let puller = &*self.puller;
        let Task { source, name, is_parallel, of_image, places, stop } = task;
        let keeps = !(*is_parallel && puller.discard);
        let name = &BlobName { is_held: puller.holds && !is_parallel, ..name.clone() };
        let put = |file: Option<&Path>| match puller.store.put(name, file) {
            Ok(Kept::Yes) => {}
            Ok(Kept::Missing) => {
                let digest = name.descriptor.digest;
                tracing::info!(layerDigest = %digest, "the layer is here, its blob is not in the content store");
            }
            Err(error) => {
                let (digest, error) = (name.descriptor.digest, chain(&error));
                tracing::warn!(layerDigest = %digest, error, "the blob is not kept");
            }
        };
        let was_put = AtomicBool::new(false);
        let keep = |file: &Path| {
            was_put.store(true, Ordering::Relaxed);
            put(Some(file));
        };
        let pull = Pull {
            stream: puller.stream(of_image, name.descriptor.size),
            buffer: Buffer::File,
            unpacks: places,
            keep: keeps.then_some(&keep),
            ztoc: puller.ztoc,
            program: puller.program(&name.descriptor.media_type).filter(|_| *is_parallel),
            local: puller.store.find(name),
        };
        let open = self.open_with(source, &name.descriptor, name.diff_id, None, stop, pull)?;
        if keeps && !was_put.load(Ordering::Relaxed) {
            put(None);
        }
        Ok(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn puller(text: &str) -> Result<Puller, LayerError> {
        let table =
            "[pull_modes.parallel_pull_unpack]\nenable = true\ndiscard_unpacked_layers = true\n";
        let settings = Config::parse(&format!("{table}{text}")).unwrap().settings;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let store = ContentStore::open(&settings, Path::new("/none"), runtime.handle()).unwrap();
        Puller::new(&settings, Arc::new(store))
    }

    fn free(slots: &[Arc<Slots>]) -> Vec<usize> {
        slots.iter().map(|slots| slots.free()).collect()
    }

    #[test]
    fn limits_are_those_of_the_settings() {
        let digest = Digest::of(b"one");
        let check = |text: &str, downloads: &[usize], unpacks: &[usize], chunk_len| {
            let puller = puller(text).unwrap();
            let image = puller.of_image(&digest);
            assert_eq!(free(&image.downloads), downloads, "{text}");
            assert_eq!(free(&image.unpacks), unpacks, "{text}");
            assert_eq!(puller.stream(&image, 4 << 30).chunk_bytes, chunk_len, "{text}");
        };
        // The peer's defaults.
        check("", &[3], &[1], CHUNK_LEN);
        check(
            "max_concurrent_downloads = 20\nmax_concurrent_downloads_per_image = 10\n\
             max_concurrent_unpacks = 8\nmax_concurrent_unpacks_per_image = 4\n\
             concurrent_download_chunk_size = \"8mb\"",
            &[10, 20],
            &[4, 8],
            8 << 20,
        );
        check(
            "max_concurrent_downloads_per_image = -1\nmax_concurrent_unpacks_per_image = 0\n\
             concurrent_download_chunk_size = \"1gb\"",
            &[],
            &[],
            CHUNK_LEN_MAX,
        );
    }

    #[test]
    fn small_blobs_come_in_short_chunks() {
        let check = |text: &str, size: u64, chunk_len: u64| {
            assert_eq!(
                puller(text).unwrap().chunk_len(size << 20),
                chunk_len << 20,
                "{text}, {size}"
            );
        };
        let peer =
            "max_concurrent_downloads_per_image = 10\nconcurrent_download_chunk_size = \"8mb\"";
        check(peer, 1, 1);
        check(peer, 64, 1);
        check(peer, 65, 2);
        check(peer, 2000, 8);
        // Three requests at once can't be short.
        check("concurrent_download_chunk_size = \"8mb\"", 1, 4);
        check(
            "max_concurrent_downloads_per_image = 1\nconcurrent_download_chunk_size = \"8mb\"",
            1,
            8,
        );
        check("max_concurrent_downloads_per_image = -1\nmax_concurrent_downloads = -1", 1, 1);
    }

    #[test]
    fn images_have_limits_of_their_own_and_share_the_node() {
        let puller = puller("max_concurrent_downloads = 4").unwrap();
        let [one, two] = [b"one", b"two"].map(|name| puller.of_image(&Digest::of(name)));
        assert!(Arc::ptr_eq(&one, &puller.of_image(&Digest::of(b"one"))));
        assert!(!Arc::ptr_eq(&one.downloads[0], &two.downloads[0]));
        assert!(Arc::ptr_eq(&one.downloads[1], &two.downloads[1]));
        drop(one);
        assert_eq!(puller.of_image(&Digest::of(b"one")).downloads[0].free(), 3);
    }

    #[test]
    fn the_lowest_layer_of_the_first_image_is_decoded_first() {
        let puller = puller("max_concurrent_unpacks = 1").unwrap();
        let [one, two] = [b"one", b"two"].map(|name| puller.of_image(&Digest::of(name)));
        let [upper, other, lower] = [one.line_up(1), two.line_up(0), one.line_up(0)];
        let take = |places: &[Place]| -> Option<Vec<_>> {
            places.iter().map(|place| place.take_within(Duration::ZERO)).collect()
        };
        assert!(take(&upper).is_none() && take(&other).is_none());
        let slots = take(&lower).unwrap();
        assert!(take(&upper).is_none());
        drop(slots);
        assert!(take(&other).is_none(), "its image came later");
        assert!(take(&upper).is_some());
    }

    #[test]
    fn programs_are_looked_at_and_chosen_by_media_type() {
        let text = |path: &str| {
            let table = "[pull_modes.parallel_pull_unpack.decompress_streams.gzip]";
            format!("{table}\npath = \"{path}\"\nargs = [\"-d\", \"-c\"]")
        };
        let puller_of = |path: &str| puller(&text(path));
        let found = puller_of("/bin/gzip").unwrap();
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", false),
            ("application/vnd.oci.image.layer.v1.tar", false),
        ] {
            assert_eq!(found.program(media_type).is_some(), expected, "{media_type}");
        }
        for (path, expected) in
            [("/nowhere/gzip", "/nowhere/gzip"), ("/bin", "/bin"), ("/etc/passwd", "/etc/passwd")]
        {
            let error = puller_of(path).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
