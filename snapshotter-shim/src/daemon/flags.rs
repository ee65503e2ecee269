//! What the command line and the environment say, and what follows for the process.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::log::Level;
use super::socket::Address;

/// Arguments as they stand.
#[derive(Clone, Debug, Default, Parser)]
#[command(
    disable_version_flag = true,
    about = "containerd snapshotter that starts containers lazily"
)]
pub struct RawFlags {
    /// Where to listen: a path, unix://PATH, or fd:// for a socket of systemd's.
    #[arg(long)]
    pub address: Option<String>,
    /// Settings file.
    #[arg(long)]
    pub config: Option<String>,
    /// trace, debug, info, warn, error, fatal or panic.
    #[arg(long)]
    pub log_level: Option<String>,
    /// Directory of all state.
    #[arg(long)]
    pub root: Option<String>,
    /// Print the version.
    #[arg(long, short = 'v')]
    pub version: bool,
    /// Read the settings, say what is wrong with them, and end.
    #[arg(long)]
    pub check_config: bool,
    /// Do something else than to serve.
    #[command(subcommand)]
    pub command: Option<RawCommand>,
}

/// Sub-commands.
#[derive(Clone, Debug, Subcommand)]
pub enum RawCommand {
    /// Show settings.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// Which settings to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Settings in force: the file's, and the default of everything else.
    Dump,
    /// Default of every setting.
    Default,
}

/// What a program of this name takes where it is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name in messages.
    pub name: &'static str,
    address: &'static str,
    config: &'static str,
    root: &'static str,
    /// Prefix of environment variables.
    environment: &'static str,
}

/// Our own name.
const OURS: Program = Program {
    name: "spanfs-snapshotter",
    address: "/run/spanfs-snapshotter/spanfs-snapshotter.sock",
    config: "/etc/spanfs-snapshotter/config.toml",
    root: "/var/lib/spanfs-snapshotter/",
    environment: "SPANFS_SNAPSHOTTER_",
};

/// The program that we stand in for, on nodes prepared for it.
const SOCI: Program = Program {
    name: "soci-snapshotter-grpc",
    address: "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock",
    config: "/etc/soci-snapshotter-grpc/config.toml",
    root: "/var/lib/soci-snapshotter-grpc/",
    environment: "SOCI_SNAPSHOTTER_",
};

/// Flags, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Name of the program in messages.
    pub name: &'static str,
    /// Where to listen.
    pub address: Address,
    /// Where to listen when systemd hands over no socket.
    pub default_address: PathBuf,
    /// Settings file.
    pub config: ConfigFile,
    /// What is logged.
    pub log_level: Level,
    /// Directory of all state.
    pub root: PathBuf,
}

/// Settings file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// Named by the caller, so it must be there.
    pub is_required: bool,
}

/// A flag that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Neither path nor unix:// nor fd://.
    #[error("unknown protocol for address {0}")]
    Address(String),
    /// No such level.
    #[error("log level {0:?} is none of trace, debug, info, warn, error, fatal, panic")]
    Level(String),
}

impl Program {
    /// The program that `argv[0]` names.
    pub fn of(argument: &str) -> Self {
        match argument.rsplit('/').next() {
            Some(name) if name == SOCI.name => SOCI,
            _ => OURS,
        }
    }
}

impl RawFlags {
    /// Complete flags: an argument before the environment before the default.
    pub fn resolve(
        self,
        program: Program,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Flags, FlagError> {
        let value = |flag: Option<String>, name: &str| {
            let variable = || environment(&format!("{}{name}", program.environment));
            flag.or_else(variable).filter(|value| !value.is_empty())
        };
        let address = value(self.address, "ADDRESS").unwrap_or_else(|| program.address.to_owned());
        let level = value(self.log_level, "LOG_LEVEL").unwrap_or_else(|| "info".to_owned());
        let config = value(self.config, "CONFIG").unwrap_or_else(|| program.config.to_owned());
        let root = value(self.root, "ROOT").unwrap_or_else(|| program.root.to_owned());
        let is_required = config != program.config;
        Ok(Flags {
            name: program.name,
            address: Address::parse(&address).ok_or(FlagError::Address(address))?,
            default_address: program.address.into(),
            config: ConfigFile { path: config.into(), is_required },
            log_level: Level::parse(&level).ok_or(FlagError::Level(level))?,
            root: root.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(
        name: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Flags, FlagError> {
        let raw = RawFlags::try_parse_from([&[name], arguments].concat()).unwrap();
        raw.resolve(Program::of(name), |wanted| {
            let found = variables.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn defaults_follow_the_name() {
        let check = |name: &str, config: &str, root: &str, socket: &str| {
            let flags = resolve(name, &[], &[]).unwrap();
            assert_eq!(flags.address, Address::Path(socket.into()), "{name}");
            assert_eq!(flags.config, ConfigFile { path: config.into(), is_required: false });
            assert_eq!((flags.root, flags.log_level), (root.into(), Level::Info));
        };
        let ours = (
            "/etc/spanfs-snapshotter/config.toml",
            "/var/lib/spanfs-snapshotter/",
            "/run/spanfs-snapshotter/spanfs-snapshotter.sock",
        );
        check("spanfs-snapshotter", ours.0, ours.1, ours.2);
        check("/usr/bin/something-else", ours.0, ours.1, ours.2);
        check(
            "/usr/local/bin/soci-snapshotter-grpc",
            "/etc/soci-snapshotter-grpc/config.toml",
            "/var/lib/soci-snapshotter-grpc/",
            "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock",
        );
    }

    #[test]
    fn flags_win_over_the_environment() {
        let variables =
            [("SOCI_SNAPSHOTTER_ROOT", "/env"), ("SOCI_SNAPSHOTTER_LOG_LEVEL", "debug")];
        let arguments = ["--root", "/flag", "--address=fd://", "--config", "/c"];
        let flags = resolve("soci-snapshotter-grpc", &arguments, &variables).unwrap();
        assert_eq!((flags.root, flags.log_level), ("/flag".into(), Level::Debug));
        assert_eq!(flags.name, "soci-snapshotter-grpc", "its messages are known by it");
        assert_eq!(flags.address, Address::Activation);
        assert_eq!(flags.config, ConfigFile { path: "/c".into(), is_required: true });
        let flags = resolve("spanfs-snapshotter", &[], &variables).unwrap();
        assert_eq!(flags.log_level, Level::Info, "another program's variables don't count");
    }

    #[test]
    fn what_cannot_be() {
        let error = resolve("x", &["--address", "tcp://127.0.0.1:1"], &[]).unwrap_err();
        assert_eq!(error.to_string(), "unknown protocol for address tcp://127.0.0.1:1");
        let error = resolve("x", &["--log-level", "loud"], &[]).unwrap_err();
        assert!(error.to_string().contains("\"loud\""), "{error}");
    }
}
