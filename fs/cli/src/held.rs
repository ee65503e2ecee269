//! Background mounts whose connections are kept past the end of their process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::geteuid;
use spanfs_mount::hold::{Holder, Holding, Name};
use spanfs_mount::transport::Privilege;
use spanfs_mount::{Inherited, Mounter, MounterOptions};

use crate::failure::Failure;
use crate::runtime;

/// Who keeps the mount in `directory`; none where nobody can, which costs only what a kill costs.
pub(crate) fn holding(directory: &Path) -> Option<Holding> {
    if !geteuid().is_root() {
        return None; // The dev transport needs root, and only its connections can be gone on with.
    }
    let missing = || io::Error::other("spanfs-hold is neither beside this program nor in PATH");
    match program().ok_or_else(missing).and_then(|program| reach(directory, program)) {
        Ok(holding) => Some(holding),
        Err(error) => {
            tracing::warn!(%error, "the mount ends with its process");
            None
        }
    }
}

fn program() -> Option<PathBuf> {
    Holder::find_program(std::env::var_os("PATH").as_deref())
}

fn reach(directory: &Path, program: PathBuf) -> io::Result<Holding> {
    let socket = runtime::directory().map_err(io::Error::other)?.join("hold.sock");
    let hold = Arc::new(Holder::reach(socket, program)?);
    let prefix = Name::new(&format!("spanfs.{}", runtime::id(directory)));
    Ok(Holding { hold, prefix: prefix.ok_or(io::ErrorKind::InvalidInput)? })
}

/// End the mount in `directory` if nobody serves it any more but its connection is kept: who reads from
/// it would wait for ever.
pub(crate) fn end(directory: &Path, state: &Path) -> Result<(), Failure> {
    let is_kept = runtime::directory()?.join("hold.sock").exists();
    if !is_kept || !geteuid().is_root() {
        return Ok(());
    }
    // The program is for who has to start it: where the holder has ended, it keeps nothing.
    let holding = match reach(directory, program().unwrap_or_default()) {
        Ok(holding) => holding,
        Err(error) => {
            tracing::debug!(%error, "nobody keeps an abandoned mount");
            return Ok(());
        }
    };
    let attempted = || format!("ending the abandoned mount in {}", directory.display());
    let options = MounterOptions { holding: Some(holding), ..MounterOptions::new(state) };
    let inherited = Mounter::new(options).and_then(|mounter| mounter.inherit(Privilege::Root));
    let inherited = inherited
        .map_err(|error| Failure::caused(crate::failure::Code::Failed, attempted(), &error))?;
    inherited.at(directory).into_iter().for_each(Inherited::discard);
    Ok(())
}
