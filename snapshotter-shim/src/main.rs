//! `spanfs-snapshotter`: containerd's snapshots, served.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use spanfs_snapshotter::config::{self, Config};
use spanfs_snapshotter::daemon::flags::{ConfigCommand, Program, RawCommand, RawFlags};
use spanfs_snapshotter::daemon::log::Level;
use spanfs_snapshotter::daemon::{life, log};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Given by who builds a release.
const REVISION: &str = match option_env!("SPANFS_REVISION") {
    Some(revision) => revision,
    None => "<unknown>",
};

fn main() -> ExitCode {
    let program = Program::of(&std::env::args().next().unwrap_or_default());
    let matches = RawFlags::command().name(program.name).get_matches();
    let raw = RawFlags::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(program, raw) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "{} failed", program.name);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "what these flags are for")]
fn run(program: Program, raw: RawFlags) -> anyhow::Result<()> {
    if raw.version {
        println!("{} version {VERSION} {REVISION}", program.name);
        return Ok(());
    }
    if let Some(RawCommand::Config(ConfigCommand::Default)) = raw.command {
        print!("{}", config::dump(&Config::default().raw));
        return Ok(());
    }
    let (command, check_config) = (raw.command.clone(), raw.check_config);
    let flags = raw.resolve(program, |name| std::env::var(name).ok());
    log::start(flags.as_ref().map_or(Level::Info, |flags| flags.log_level));
    let flags = flags?;
    if command.is_none() && !check_config {
        tracing::info!(version = VERSION, revision = REVISION, "starting {}", program.name);
    }
    let config = Config::read(&flags.config.path, flags.config.is_required)?;
    for warning in &config.warnings {
        tracing::warn!(line = warning.line, file = %flags.config.path.display(), "{}", warning.text);
    }
    if command.is_some() {
        print!("{}", config::dump(&config.raw));
        return Ok(());
    }
    if check_config {
        life::check(&config.settings)?;
        println!("{} is fine", flags.config.path.display());
        return Ok(());
    }
    life::run(&flags, &config)
}
