//! One command's hold on one image: reached, opened, perhaps mounted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use spanfs::image::{
    Discovery, How, Image, ImageError, Images, ImagesOptions, LayerSource, Layers, Pinned, Pull,
    Search,
};
use spanfs::mounted::{MountStatus, Mounted, ShowError, ShowOptions, show};
use spanfs::start::{expect_start, start_config};
use spanfs_cache::{
    Background as CacheBackground, Cache, CacheError, CacheOptions, Image as Prefetch, ImageSpec,
};
use spanfs_fetch::{Class, CredentialSource, ImageRef, ProxyOptions, RegistryOptions, Secret};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, ImageConfig, Platform};
use spanfs_mount::hold::Holding;
use spanfs_mount::overlay::Upper;
use spanfs_mount::policy::Front;
use spanfs_mount::transport::Transport;

use crate::arguments::{self, FrontChoice, Show, TransportChoice};
use crate::failure::{Code, Failure};
use crate::output::{Bar, Output};
use crate::settings::{Background, Keeping, Reaching};

/// Time for readers of a mount that is taken away; the kernel needs 60 ms a layer.
const UNMOUNT_TIME: Duration = Duration::from_secs(15);

/// How an image is reached.
pub(crate) struct Reached {
    pub(crate) images: Images,
    pub(crate) image: Image,
    pub(crate) discovery: Discovery,
    pub(crate) name: String,
}

impl Reached {
    /// `cache_dir`: where layers will be opened, if they will.
    pub(crate) fn find(
        asked: &arguments::Image,
        reaching: &Reaching,
        cache_dir: Option<&Path>,
    ) -> Result<Self, Failure> {
        let attempted = || format!("finding the image {}", asked.image);
        let failed = |error: ImageError| image_failure(attempted(), &error);
        let (images, name) = start(&asked.image, reaching)?;
        let wanted = asked.platform.as_deref().map(platform).transpose()?;
        let platform = wanted.clone().unwrap_or_else(Platform::host);
        let search = Search::default();
        let source = images.source(&name).map_err(failed)?;
        let (image, discovery) =
            images.find_indexed(source, &platform, &search, cache_dir).map_err(failed)?;
        check_platform(wanted.as_ref(), &image).map_err(|error| failed(*error))?;
        if let Discovery::None { reason } = &discovery {
            tracing::info!(image = %name, reason, "no SOCI index");
        }
        Ok(Self { images, image, discovery, name: asked.image.clone() })
    }

    /// As an earlier process found it.
    fn again(name: &str, pinned: &Pinned, reaching: &Reaching) -> Result<Self, Failure> {
        let failed =
            |error: ImageError| image_failure(format!("going on with the image {name}"), &error);
        let images = Images::start(images_options(reaching)).map_err(failed)?;
        let (image, discovery) = pinned.open(&images).map_err(failed)?;
        Ok(Self { images, image, discovery, name: name.to_owned() })
    }
}

/// What reaches images, and the name of one.
pub(crate) fn start(name: &str, reaching: &Reaching) -> Result<(Images, ImageRef), Failure> {
    let attempted = || format!("finding the image {name}");
    let named: ImageRef = name
        .parse()
        .map_err(|error| Failure::caused(Code::Usage, attempted(), &error).advise(NAME_ADVICE))?;
    let images = Images::start(images_options(reaching))
        .map_err(|error| image_failure(attempted(), &error))?;
    Ok((images, named))
}

pub(crate) fn platform(text: &str) -> Result<Platform, Failure> {
    text.parse().map_err(|error| {
        Failure::caused(Code::Usage, format!("reading the platform {text:?}"), &error)
    })
}

/// A name may mean one image without saying for which platform; its config does.
pub(crate) fn check_platform(
    wanted: Option<&Platform>,
    image: &Image,
) -> Result<(), Box<ImageError>> {
    let found = &image.documents.config.platform;
    match wanted {
        Some(wanted) if wanted.preference(found).is_none() => {
            let name = image.source.image();
            let text = format!("{name} is for {found}, not for {wanted}");
            Err(Box::new(ImageError::NotFound(text)))
        }
        _ => Ok(()),
    }
}

fn images_options(reaching: &Reaching) -> ImagesOptions {
    ImagesOptions { registry: registry_options(reaching), ..ImagesOptions::default() }
}

/// How registries are spoken to.
pub(crate) fn registry_options(reaching: &Reaching) -> RegistryOptions {
    let given = reaching.login.clone().map(|login| CredentialSource::Given {
        host: None,
        login,
        name: "SPANFS_USERNAME".to_owned(),
    });
    let docker = reaching.docker_config.clone().map(CredentialSource::DockerConfig);
    let proxies = ProxyOptions {
        http: reaching.http_proxy.clone().map(Secret::new),
        https: reaching.https_proxy.clone().map(Secret::new),
        no_proxy: reaching.no_proxy.clone(),
    };
    RegistryOptions {
        credentials: given.into_iter().chain(docker).collect(),
        hosts_dirs: reaching.hosts_dirs.clone(),
        plain_http: reaching.plain_http,
        proxies,
        ..RegistryOptions::default()
    }
}

/// An image whose layers are open.
pub(crate) struct Session {
    /// Before the layers, which it reads from.
    mounted: Option<Mounted>,
    prefetch: Option<Arc<Prefetch>>,
    layers: Layers,
    cache: Cache,
    reached: Reached,
    keeping: Keeping,
}

impl Session {
    pub(crate) fn open(
        asked: &arguments::Image,
        pinned: Option<&Pinned>,
        only: Option<&Digest>,
        keeping: &Keeping,
        reaching: &Reaching,
        output: &Output,
    ) -> Result<Self, Failure> {
        let reached = match pinned {
            Some(pinned) => Reached::again(&asked.image, pinned, reaching)?,
            None => Reached::find(asked, reaching, Some(&keeping.cache_dir))?,
        };
        let attempted = || format!("opening the layers of {}", asked.image);
        let failed = |error: ImageError| image_failure(attempted(), &error);
        let mut options = CacheOptions::new(keeping.cache_dir.clone(), keeping.threads);
        options.quota_bytes = Some(keeping.cache_bytes_max);
        // A half each for what is on its way and for what a failing disk refuses.
        options.fetch_bytes_max = options.fetch_bytes_max.min(keeping.memory_bytes_max / 2);
        options.memory_bytes_max = options.memory_bytes_max.min(keeping.memory_bytes_max / 2);
        if let Background::Complete { bytes_per_second } = keeping.background {
            options.background_bytes_per_second_max = bytes_per_second;
        }
        let cache = Cache::open(options).map_err(|error| failed(error.into()))?;
        let bars = Bars { output, bars: Mutex::default() };
        let source = LayerSource {
            cache: &cache,
            directory: &keeping.cache_dir,
            stop: &AtomicBool::new(false),
            progress: &|descriptor, done| bars.set(descriptor, done),
            pull: Pull::default(),
        };
        let layers = reached
            .images
            .open_layers(&reached.image, &reached.discovery, only, &source)
            .map_err(failed)?;
        bars.finish();
        for layer in &layers.layers {
            if let How::Never(reason) = &layer.how {
                tracing::info!(layer = %layer.descriptor.digest, reason, "fetched whole");
            }
        }
        let (mounted, prefetch, keeping) = (None, None, keeping.clone());
        Ok(Self { mounted, prefetch, layers, cache, reached, keeping })
    }

    pub(crate) fn config(&self) -> &ImageConfig {
        &self.reached.image.documents.config
    }

    /// What a successor of this process needs to know of the image.
    pub(crate) fn pinned(&self) -> Option<Pinned> {
        Pinned::of(&self.reached.name, &self.reached.image, &self.reached.discovery)
    }

    pub(crate) fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Begin to fetch what nobody has read yet.
    pub(crate) fn prefetch(&mut self) {
        let background = match self.keeping.background {
            Background::Off => CacheBackground::Off,
            Background::Complete { .. } => CacheBackground::On,
        };
        let layers = self.layers.layers.iter().filter_map(|layer| layer.spans.clone());
        self.prefetch = Some(self.cache.image(ImageSpec {
            layers: layers.collect(),
            config: Some(self.reached.image.documents.manifest.config.digest),
            background,
            record: true,
        }));
    }

    pub(crate) fn mount(&mut self, asked: &Mounting) -> Result<(), Failure> {
        let options = ShowOptions {
            front: match asked.show.front {
                FrontChoice::Auto => None,
                FrontChoice::Erofs => Some(Front::Erofs),
                FrontChoice::Inode => Some(Front::Inode),
            },
            transport: match asked.show.transport {
                TransportChoice::Auto => None,
                TransportChoice::Dev => Some(Transport::Dev),
                TransportChoice::Uring => Some(Transport::Uring),
                TransportChoice::Fuse3 => Some(Transport::Fuse3),
            },
            enable_uring: asked.show.enable_uring,
            state: asked.state.clone(),
            indexes: self.keeping.cache_dir.join("indexes"),
            upper: asked.upper.clone(),
            bare_layer: asked.bare_layer,
            holding: asked.holding.clone(),
            succeeds: asked.succeeds,
        };
        self.prefetch();
        let layers = &self.layers;
        let mounted = std::thread::scope(|scope| {
            if asked.holding.is_some() {
                // We may be killed as soon as the mount is there, and the registry be gone by then.
                scope.spawn(|| layers.put_tocs());
            }
            show(layers, &asked.directory, &options).map_err(|error| {
                let place = asked.directory.display();
                show_failure(format!("mounting {} at {place}", self.reached.name), &error)
            })
        });
        self.mounted = Some(mounted?);
        if !asked.bare_layer {
            self.expect_start(&asked.command);
        }
        let images = &self.reached.images;
        self.layers.layers.iter().for_each(|layer| layer.keep(images));
        self.layers.forget_tocs(images);
        Ok(())
    }

    /// Fetch what the image's program will probably read.
    fn expect_start(&self, command: &[String]) {
        let Some(prefetch) = &self.prefetch else { return };
        let (config, layers) = (start_config(self.config(), command), self.layers.clone());
        expect_start(prefetch, config, || Some(layers));
    }

    /// Reads of an earlier start that are fetched first; 0 where none was recorded.
    pub(crate) fn trace_runs(&self) -> usize {
        self.prefetch.as_ref().map_or(0, |prefetch| prefetch.status().trace_runs)
    }

    pub(crate) fn status(&self) -> Option<MountStatus> {
        self.mounted.as_ref().map(Mounted::status)
    }

    /// Take the mount away.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        let Some(mounted) = self.mounted.take() else { return Ok(()) };
        mounted.unmount(UNMOUNT_TIME).map(drop).map_err(|error| {
            Failure::caused(Code::Failed, format!("unmounting {}", self.reached.name), &error)
        })
    }
}

/// Where and how to mount.
#[derive(Clone, Debug)]
pub(crate) struct Mounting {
    pub(crate) directory: PathBuf,
    pub(crate) show: Show,
    pub(crate) state: PathBuf,
    pub(crate) upper: Option<Upper>,
    pub(crate) bare_layer: bool,
    /// What will be started, if not the image's own program.
    pub(crate) command: Vec<String>,
    /// Who keeps the mount for a successor of this process.
    pub(crate) holding: Option<Holding>,
    /// Go on with the mount of a predecessor, or fail.
    pub(crate) succeeds: bool,
}

impl Mounting {
    /// An image, read-only.
    pub(crate) fn of(directory: &Path, show: Show, state: PathBuf) -> Self {
        let (upper, bare_layer, command) = (None, false, Vec::new());
        let (directory, holding, succeeds) = (directory.to_owned(), None, false);
        Self { directory, show, state, upper, bare_layer, command, holding, succeeds }
    }
}

/// Progress of layers fetched whole.
struct Bars<'a> {
    output: &'a Output,
    bars: Mutex<Vec<(Digest, Bar)>>,
}

impl Bars<'_> {
    fn set(&self, descriptor: &Descriptor, done: u64) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = descriptor.digest;
        let known = bars.iter().position(|(known, _)| *known == digest);
        let number = known.unwrap_or_else(|| {
            let label = format!("fetching {:.19}", digest.to_string());
            bars.push((digest, self.output.bar(&label, descriptor.size)));
            bars.len() - 1
        });
        if let Some((_, bar)) = bars.get_mut(number) {
            bar.set(done);
        }
    }

    fn finish(self) {
        let bars = self.bars.into_inner().unwrap_or_else(PoisonError::into_inner);
        bars.into_iter().for_each(|(_, bar)| bar.clear());
    }
}

const NAME_ADVICE: &str = "write HOST/NAME:TAG, oci:DIR[:TAG] or oci-archive:FILE[:TAG]";

/// A failed image, with its exit code and what to do about it.
pub(crate) fn image_failure(attempted: String, error: &ImageError) -> Failure {
    if error.is_usage() {
        return Failure::caused(Code::Usage, attempted, error).advise(NAME_ADVICE);
    }
    let code = code_of(error.class());
    let failure = Failure::caused(code, attempted, error);
    if is_of_disk(error) {
        return failure.advise("give a directory of yours, with room, by --cache-dir");
    }
    match code {
        Code::NotFound => failure.advise("check the name, the tag and --platform"),
        Code::Refused => {
            failure.advise("log in (docker login), or set SPANFS_USERNAME and SPANFS_PASSWORD")
        }
        Code::Corrupt => failure.advise("push the image again, or report it to who made it"),
        _ => failure.advise("check that the registry can be reached, and try again"),
    }
}

/// True where the cache's directory is to blame, and no registry.
fn is_of_disk(error: &ImageError) -> bool {
    match error {
        ImageError::Disk { .. } => true,
        ImageError::Cache(error) => {
            matches!(error, CacheError::Storage { .. } | CacheError::OtherFormat { .. })
        }
        _ => false,
    }
}

pub(crate) fn code_of(class: Class) -> Code {
    match class {
        Class::Gone => Code::NotFound,
        Class::Refused => Code::Refused,
        Class::Corrupt => Code::Corrupt,
        Class::Retry | Class::Cancelled => Code::Failed,
    }
}

fn show_failure(attempted: String, error: &ShowError) -> Failure {
    match error {
        ShowError::Image(error) => image_failure(attempted, error),
        ShowError::NoFront(_) => Failure::caused(Code::Failed, attempted, error).advise(
            "leave --front out, run as root, or install fuse3 and open /dev/fuse to users for \
             fusermount3; spanfs cat needs no mount at all",
        ),
        ShowError::Unprivileged => Failure::caused(Code::Refused, attempted, error)
            .advise("run as root, or use spanfs run, which is writable without root"),
        _ => Failure::caused(Code::Failed, attempted, error),
    }
}
