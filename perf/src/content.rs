//! Synthetic images: layers of generated files in OCI layouts.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use libdeflater::{CompressionLvl, Compressor};
use serde_json::json;
use spanfs_layer::Digest;

/// A layer in the making: an uncompressed tar in memory.
pub(crate) struct Layer {
    tar: tar::Builder<Vec<u8>>,
    seed: u64,
}

impl Layer {
    pub(crate) fn new(seed: u64) -> Self {
        Self { tar: tar::Builder::new(Vec::new()), seed }
    }

    /// A file that compresses about as well as programs do.
    pub(crate) fn file(&mut self, path: &str, len: usize) -> Result<()> {
        self.seed += 1;
        self.file_of(path, &program_like(self.seed, len))
    }

    /// A file of given content.
    pub(crate) fn file_of(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut header = header(bytes.len() as u64);
        Ok(self.tar.append_data(&mut header, path, bytes)?)
    }

    /// A file that can be run.
    pub(crate) fn program(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut header = header(bytes.len() as u64);
        header.set_mode(0o755);
        Ok(self.tar.append_data(&mut header, path, bytes)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }
}

fn header(len: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(len);
    header.set_mtime(1_700_000_000);
    header
}

/// Bytes of which about 2.5 come out of one compressed byte: noise between repeated words.
pub(crate) fn program_like(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<[u8; 16]> = (0..64)
        .map(|_| {
            let mut word = [0; 16];
            word[..8].copy_from_slice(&next().to_le_bytes());
            word[8..].copy_from_slice(&next().to_le_bytes());
            word
        })
        .collect();
    let mut bytes = Vec::with_capacity(len + 32);
    while bytes.len() < len {
        let number = next();
        bytes.extend(number.to_le_bytes());
        bytes.extend(words[(number >> 40) as usize % words.len()]);
    }
    bytes.truncate(len);
    bytes
}

/// Programs and libraries of this machine, one behind the other, and again from the start where there
/// are too few: DEFLATE looks back 32 KiB and does not notice.
pub(crate) fn programs(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let before = bytes.len();
        ["/usr/bin", "/usr/lib"].iter().for_each(|dir| add_files(Path::new(dir), &mut bytes, len));
        anyhow::ensure!(bytes.len() > before, "no files below /usr/bin and /usr/lib");
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn add_files(dir: &Path, bytes: &mut Vec<u8>, len_max: usize) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(file_type) = entry.file_type() else { continue };
        if bytes.len() >= len_max {
            return;
        } else if file_type.is_dir() {
            add_files(&entry.path(), bytes, len_max);
        } else if file_type.is_file() {
            // what can't be read is left out
            bytes.extend(fs::read(entry.path()).unwrap_or_default());
        }
    }
}

/// Writes an image of gzip layers as an OCI layout tagged `latest`.
pub(crate) fn write_layout(dir: &Path, layers: impl IntoIterator<Item = Layer>) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8]| -> Result<(Digest, usize)> {
        let digest = Digest::of(bytes);
        fs::File::create(blobs.join(digest.hex().to_string()))?.write_all(bytes)?;
        Ok((digest, bytes.len()))
    };
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        let tar = layer.finish()?;
        diff_ids.push(Digest::of(&tar));
        let (digest, size) = put(&gzip(&tar)?)?;
        descriptors.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest, "size": size,
        }));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let (digest, size) = put(config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size,
        },
        "layers": descriptors,
    });
    let (digest, size) = put(manifest.to_string().as_bytes())?;
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": size,
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }],
    });
    fs::write(dir.join("index.json"), index.to_string())?;
    Ok(fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?)
}

fn gzip(tar: &[u8]) -> Result<Vec<u8>> {
    let mut compressor = Compressor::new(CompressionLvl::new(6).unwrap_or_default());
    let mut bytes = vec![0; compressor.gzip_compress_bound(tar.len())];
    let len = compressor
        .gzip_compress(tar, &mut bytes)
        .map_err(|error| anyhow::anyhow!("compressing a layer: {error:?}"))?;
    bytes.truncate(len);
    Ok(bytes)
}
