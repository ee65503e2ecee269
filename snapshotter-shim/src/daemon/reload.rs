//! The settings file read again, on SIGHUP.

use std::sync::Arc;

use parking_lot::RwLock;

use super::flags::ConfigFile;
use super::log::chain;
use crate::config::reload::{changes, taken};
use crate::config::{Config, RawConfig};
use crate::snapshotter::Snapshotter;

/// Settings in force, and where they come from.
#[derive(Clone)]
pub struct Current {
    file: ConfigFile,
    raw: Arc<RwLock<RawConfig>>,
}

impl Current {
    /// As they were read from `file`.
    pub fn new(file: ConfigFile, raw: RawConfig) -> Self {
        Self { file, raw: Arc::new(RwLock::new(raw)) }
    }

    /// The settings as a file that says the same.
    pub fn dump(&self) -> String {
        crate::config::dump(&self.raw.read())
    }

    /// Read the file again, and have `snapshotter` take what it can. A file that is wrong changes
    /// nothing. Says in the log what came of it.
    pub fn reload(&self, snapshotter: &Snapshotter) {
        let path = self.file.path.display();
        let config = match Config::read(&self.file.path, self.file.is_required) {
            Ok(config) => config,
            Err(error) => {
                let error = chain(&error);
                tracing::error!(file = %path, error, "settings are not reloaded; the old ones stay");
                return;
            }
        };
        for warning in &config.warnings {
            tracing::warn!(line = warning.line, file = %path, "{}", warning.text);
        }
        let changes = changes(&self.raw.read(), &config.raw);
        if let Err(error) = snapshotter.reload(&config.settings) {
            let error = chain(&error);
            tracing::error!(file = %path, error, "settings are reloaded in part");
        }
        for key in &changes.later {
            tracing::warn!(key, "a changed setting takes effect with the next start");
        }
        tracing::info!(file = %path, changed = changes.live.join(" "), "settings reloaded");
        let mut raw = self.raw.write();
        *raw = taken(&raw, &config.raw);
    }
}
