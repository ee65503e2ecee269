//! The table of a tar: which member stands where.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use super::{Extent, LayoutError, io};

/// Blobs of thousands of images; more is no layout.
const MEMBERS_MAX: usize = 1 << 20;

pub(super) fn members(file: &File, path: &Path) -> Result<HashMap<String, Extent>, LayoutError> {
    let not = |reason: String| LayoutError::NotALayout { path: path.to_owned(), reason };
    let len = file.metadata().map_err(|error| io("reading", path, &error))?.len();
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries_with_seek().map_err(|error| io("reading", path, &error))?;
    let mut members = HashMap::new();
    for entry in entries {
        let entry = entry.map_err(|error| not(format!("its tar can't be read: {error}")))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path_bytes();
        let Ok(name) = std::str::from_utf8(&name) else { continue };
        let name = name.trim_start_matches("./");
        let extent = Extent { offset: entry.raw_file_position(), len: entry.size() };
        if extent.offset.checked_add(extent.len).is_none_or(|end| end > len) {
            return Err(not(format!("it ends inside {name:?}")));
        }
        // Other members, such as docker's manifest.json, are nobody's business here.
        if matches!(name, "oci-layout" | "index.json") || name.starts_with("blobs/") {
            members.insert(name.to_owned(), extent);
        }
        if members.len() > MEMBERS_MAX {
            return Err(not(format!("it has more than {MEMBERS_MAX} blobs")));
        }
    }
    Ok(members)
}
