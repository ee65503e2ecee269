//! Docker's older layout of a host's directory: `*.crt` are CAs, `NAME.cert` with `NAME.key` a client
//! certificate.

use std::path::{Path, PathBuf};

use super::HostsError;
use crate::trust::TlsOptions;

/// No directory of certificates is larger.
const FILES_MAX: usize = 1024;

pub(super) fn read(directory: &Path) -> Result<TlsOptions, HostsError> {
    let unreadable = |error: std::io::Error| HostsError::Read {
        path: directory.to_owned(),
        reason: error.to_string(),
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)?.take(FILES_MAX) {
        files.push(entry.map_err(unreadable)?.path());
    }
    files.sort();
    let mut tls = TlsOptions::default();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca_files.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                if !key.is_file() {
                    let reason = format!("client certificate without its key {}", key.display());
                    return Err(HostsError::Malformed { path: file, reason });
                }
                tls.client_pairs.push((file, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}
