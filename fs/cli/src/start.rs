//! The start of an image's program, foreseen: what it will probably read is fetched first.
//!
//! A guess: what goes wrong here costs only time.

use std::sync::Arc;
use std::time::Duration;

use spanfs_cache::Image as Prefetch;
use spanfs_layer::Tree;
use spanfs_layer::oci::ImageConfig;
use spanfs_layer::tree::TreeOptions;
use spanfs_mount::start_set::{StartSet, StartSetOptions, drive};

pub use spanfs_mount::start_set::StartConfig;

use crate::image::{Layers, OpenLayer};

/// A start is over by then, or its guess came too late.
const TIME_MAX: Duration = Duration::from_secs(20);

/// zTOCs of more than this make trees of more than half as much, all of them in memory for a guess.
const TOC_BYTES_MAX: u64 = 128 << 20;

/// What an image says of its start; `command`, unless it is empty, is started instead of its own.
pub fn start_config(config: &ImageConfig, command: &[String]) -> StartConfig {
    let bytes = |texts: &[String]| texts.iter().map(|text| text.clone().into_bytes()).collect();
    let config = &config.config;
    let (entrypoint, cmd) = match command.is_empty() {
        true => (bytes(&config.entrypoint), bytes(&config.cmd)),
        false => (Vec::new(), bytes(command)),
    };
    StartConfig {
        entrypoint,
        cmd,
        env: bytes(&config.env),
        workdir: config.working_dir.clone().into_bytes(),
    }
}

/// Have `prefetch` fetch what the program will probably read, found out on a thread of its own.
/// `layers` gives the image's, the lowest first, as far as they are known. A recorded trace knows
/// better: where there is one, nothing is guessed.
pub fn expect_start(
    prefetch: &Arc<Prefetch>,
    config: StartConfig,
    layers: impl FnOnce() -> Option<Layers> + Send + 'static,
) {
    let is_told = !(config.entrypoint.is_empty() && config.cmd.is_empty());
    if !is_told || prefetch.status().trace_runs > 0 {
        return;
    }
    // Who takes the image away ends the guess.
    let prefetch = Arc::downgrade(prefetch);
    let work = move || {
        let Some(layers) = layers() else { return };
        if layers.toc_bytes() > TOC_BYTES_MAX {
            return tracing::info!("too many files for a prediction of the start set");
        }
        // What can't be read is left out: the guess gets worse by that alone.
        let trees = layers.each_tree(&TreeOptions::default());
        layers.forget_kept_tocs();
        let (mut known, mut stack) = (Vec::new(), Vec::new());
        for (layer, tree) in layers.layers.iter().zip(trees) {
            match tree {
                Ok(tree) => {
                    known.push(layer);
                    stack.push(tree);
                }
                Err(error) => {
                    let layer = layer.descriptor.digest;
                    tracing::debug!(%layer, %error, "left out of the prediction of the start set");
                }
            }
        }
        let (Ok(tree), Some(image)) = (Tree::merge(&stack), prefetch.upgrade()) else { return };
        // The prefetcher counts lazy layers alone, the tree all of them.
        let number_of = |layer: &&OpenLayer| {
            image.layers().iter().position(|it| *it.digest() == layer.descriptor.digest)
        };
        let numbers: Vec<_> = known.iter().map(number_of).collect();
        drop(image);
        let contents: Vec<_> = known.iter().map(|it| it.content.clone()).collect();
        let set = StartSet::new(Arc::new(tree), config, StartSetOptions::default());
        drive(set, &contents, TIME_MAX, |wanted| {
            if let (Some(Some(number)), Some(prefetch)) =
                (numbers.get(usize::from(wanted.layer)), prefetch.upgrade())
            {
                prefetch.expect(&[(*number, wanted.range)]);
            }
        });
    };
    if let Err(error) = std::thread::Builder::new().name("start-set".into()).spawn(work) {
        tracing::warn!(%error, "the start set is not predicted");
    }
}
