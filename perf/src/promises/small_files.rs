//! 20,000 small files through EROFS over the one-file FUSE mount, against an ext4 directory.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::indexed_image;
use crate::content::Layer;
use crate::lab::{Lab, Mounted, drop_caches, run as run_command, seconds};
use crate::report::{Goal, Report, Row};

const FILES: usize = 20_000;

pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let layout = indexed_image(lab, "small-files", || {
        let mut layer = Layer::new(7);
        for number in 0..FILES {
            layer.file(&format!("small/{:02}/{number:05}", number / 400), 8192)?;
        }
        // never read: it keeps the layer incomplete, and so shown through the one-file mount
        layer.file("unread", 64 << 20)?;
        Ok([layer])
    })?;
    let image = format!("oci:{}:latest", layout.display());
    let dir = lab.dir("small-files")?;
    let options = ["--front", "erofs", "--no-background"];

    let plain = dir.join("plain");
    fs::create_dir_all(&plain)?;
    {
        let mounted = Mounted::new(lab, &dir, &image, &options)?;
        run_command(Command::new("cp").arg("-a").arg(mounted.root.join("small")).arg(&plain))?;
        let status = mounted.status()?.to_string();
        ensure!(status.contains("one-file"), "not shown through the one-file mount: {status}");
    }
    let layer_file = largest_file(&dir.join("cache"))?;

    let (mut ext4_cold, mut ext4_warm) = (Vec::new(), Vec::new());
    let (mut cached, mut on_disk, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..lab.runs {
        drop_caches()?;
        ext4_cold.push(seconds(|| read_all(&plain.join("small")))?);
        ext4_warm.push(seconds(|| read_all(&plain.join("small")))?);
        {
            let mounted = Mounted::new(lab, &dir, &image, &options)?;
            drop_caches()?;
            run_command(Command::new("cat").arg(&layer_file).stdout(std::process::Stdio::null()))?;
            let small = mounted.root.join("small");
            cached.push(seconds(|| read_all(&small))?);
            warm.push(seconds(|| read_all(&small))?);
        }
        let mounted = Mounted::new(lab, &dir, &image, &options)?;
        drop_caches()?;
        on_disk.push(seconds(|| read_all(&mounted.root.join("small")))?);
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().context("no run")
    };
    let (ext4_cold, ext4_warm) = (median(ext4_cold)?, median(ext4_warm)?);
    let row = |what: &str, value, unit, goal| Row {
        promise: "small-files",
        what: what.to_owned(),
        value,
        unit,
        goal,
    };
    report.row(&row("ext4 directory, cold", ext4_cold, "s", Goal::None))?;
    report.row(&row("ext4 directory, warm", ext4_warm, "s", Goal::None))?;
    report.row(&row(
        "cold, layer file in the page cache / ext4 cold",
        median(cached)? / ext4_cold,
        "x",
        Goal::AtMost(0.4),
    ))?;
    report.row(&row(
        "cold, layer file on disk / ext4 cold",
        median(on_disk)? / ext4_cold,
        "x",
        Goal::AtMost(0.8),
    ))?;
    report.row(&row("warm / ext4 warm", median(warm)? / ext4_warm, "x", Goal::AtMost(1.1)))
}

fn read_all(dir: &Path) -> Result<()> {
    let mut dirs: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    dirs.sort_by_key(fs::DirEntry::file_name);
    let mut count = 0;
    for dir in dirs {
        let mut files: Vec<_> = fs::read_dir(dir.path())?.collect::<Result<_, _>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files {
            ensure!(fs::read(file.path())?.len() == 8192, "short file");
            count += 1;
        }
    }
    ensure!(count == FILES, "{count} files of {FILES}");
    Ok(())
}

/// The layer file is by far the largest in the cache.
fn largest_file(dir: &Path) -> Result<std::path::PathBuf> {
    let mut dirs = vec![dir.to_owned()];
    let mut largest = None;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if largest.as_ref().is_none_or(|(len, _)| meta.len() > *len) {
                largest = Some((meta.len(), entry.path()));
            }
        }
    }
    largest.map(|(_, path)| path).context("the cache is empty")
}
