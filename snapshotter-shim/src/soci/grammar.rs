//! The command line, as urfave/cli reads it, which the peer is built with.
//!
//! Flags and arguments may be mixed, one dash is as good as two, and global flags may stand before or
//! behind the subcommand. Scripts and nerdctl rely on all of these, and on the messages and the exit
//! status of what is not understood.

use std::collections::BTreeMap;
use std::time::Duration;

use super::duration;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, or `=true` and `=false`.
    Bool,
    /// Text.
    Text,
    /// Texts: repeated, or separated by commas.
    Texts,
    /// Whole number.
    Int,
    /// Whole number from 0.
    Uint,
    /// Time as Go writes it: `1m30s`.
    Duration,
    /// One of the archive formats.
    Format,
}

/// A flag.
#[derive(Debug)]
pub struct Flag {
    /// Its name, by which it is asked for.
    pub name: &'static str,
    /// A second name of one letter, or empty.
    pub short: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Value without it; empty for none.
    pub default: &'static str,
    /// Environment variable that stands for it; empty for none.
    pub env: &'static str,
    /// For people.
    pub help: &'static str,
}

/// A command and what belongs to it.
#[derive(Debug)]
pub struct Command {
    /// Name and aliases.
    pub names: &'static [&'static str],
    /// Its arguments, for people.
    pub arguments: &'static str,
    /// What it does, for people.
    pub help: &'static str,
    /// Its flags, in groups that commands share.
    pub flags: &'static [&'static [Flag]],
    /// Commands below it; one that has any does nothing itself.
    pub subcommands: &'static [Command],
    /// All that follows, flags too, is for another program.
    pub passes_on: bool,
}

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Run a command.
    Run(Arguments),
    /// Show how a command is used; its path from the program on.
    Help(Vec<&'static str>),
    /// Show the version.
    Version,
}

/// A command with what it was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// First names from below the program on: `["index", "list"]`.
    pub path: Vec<&'static str>,
    /// What is no flag.
    pub positional: Vec<String>,
    values: BTreeMap<&'static str, Vec<String>>,
}

/// A command line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Wrong use of a command: its usage is shown.
    #[error("{text}")]
    Usage {
        /// The command, from the program on.
        path: Vec<&'static str>,
        /// What is wrong.
        text: String,
    },
    /// No such command.
    #[error("No help topic for '{0}'")]
    NoCommand(String),
}

/// Understand a command line (without the program's own name).
pub fn parse(
    program: &'static Command,
    line: &[String],
    env: impl Fn(&str) -> Option<String>,
) -> Result<Asked, GrammarError> {
    let mut reader = Reader {
        commands: vec![program],
        values: BTreeMap::new(),
        positional: Vec::new(),
        rest: line.iter(),
        help: false,
    };
    if reader.read()? {
        return Ok(Asked::Version);
    }
    let Reader { commands, mut values, positional, help, .. } = reader;
    let names = |from: usize| commands.iter().skip(from).map(|it| it.names[0]).collect();
    let last = commands[commands.len() - 1];
    if help || !last.subcommands.is_empty() {
        return Ok(Asked::Help(names(0)));
    }
    for flag in commands.iter().flat_map(|command| command.flags).copied().flatten() {
        if let Some(value) = Some(flag.env).filter(|it| !it.is_empty()).and_then(&env)
            && !value.is_empty()
        {
            values.entry(flag.name).or_insert_with(|| vec![value]);
        }
        if !flag.default.is_empty() {
            values.entry(flag.name).or_insert_with(|| vec![flag.default.to_owned()]);
        }
    }
    Ok(Asked::Run(Arguments { path: names(1), positional, values }))
}

struct Reader<'a> {
    /// From the program down to where we are.
    commands: Vec<&'static Command>,
    values: BTreeMap<&'static str, Vec<String>>,
    positional: Vec<String>,
    rest: std::slice::Iter<'a, String>,
    help: bool,
}

impl Reader<'_> {
    /// Read all of it. True if the version is asked for.
    fn read(&mut self) -> Result<bool, GrammarError> {
        while let Some(word) = self.rest.next() {
            let passes_on = self.commands.last().is_some_and(|command| command.passes_on);
            if passes_on {
                self.positional.push(word.clone());
            } else if word == "--" {
                self.positional.extend(self.rest.by_ref().cloned());
            } else if word.len() > 1 && word.starts_with('-') {
                let name = word.strip_prefix("--").unwrap_or(&word[1..]);
                let (name, value) = match name.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (name, None),
                };
                match name {
                    "help" | "h" => self.help = true,
                    "version" | "v" if self.commands.len() == 1 => return Ok(true),
                    _ => self.flag(name, value)?,
                }
            } else {
                self.word(word)?;
            }
        }
        Ok(false)
    }

    fn word(&mut self, word: &str) -> Result<(), GrammarError> {
        let here = self.commands[self.commands.len() - 1];
        if here.subcommands.is_empty() {
            self.positional.push(word.to_owned());
            return Ok(());
        }
        match here.subcommands.iter().find(|command| command.names.contains(&word)) {
            Some(command) => self.commands.push(command),
            None if matches!(word, "help" | "h") => self.help = true,
            None => return Err(GrammarError::NoCommand(word.to_owned())),
        }
        Ok(())
    }

    fn flag(&mut self, name: &str, value: Option<String>) -> Result<(), GrammarError> {
        let known = self.commands.iter().rev().flat_map(|command| command.flags).copied().flatten();
        let is_named = |flag: &&Flag| flag.name == name || (flag.short == name && !name.is_empty());
        let Some(flag) = { known }.find(is_named) else {
            return Err(self.usage(format!("flag provided but not defined: -{name}")));
        };
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => match self.rest.next() {
                Some(value) => value.clone(),
                None => return Err(self.usage(format!("flag needs an argument: -{name}"))),
            },
        };
        if let Err(reason) = check(flag.kind, &value) {
            let text = format!("invalid value {value:?} for flag -{name}: {reason}");
            return Err(self.usage(text));
        }
        let values = self.values.entry(flag.name).or_default();
        if flag.kind == Kind::Texts {
            values.extend(value.split(',').map(|part| part.trim().to_owned()));
        } else {
            *values = vec![value];
        }
        Ok(())
    }

    fn usage(&self, text: String) -> GrammarError {
        let path = self.commands.iter().map(|command| command.names[0]).collect();
        GrammarError::Usage { path, text }
    }
}

/// Whether a value is one of its kind; if not, Go's words for it.
fn check(kind: Kind, value: &str) -> Result<(), String> {
    let number = |parsed: Result<(), std::num::ParseIntError>, function: &str| {
        parsed.map_err(|error| {
            let reason = match error.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                    "value out of range"
                }
                _ => "invalid syntax",
            };
            format!("strconv.{function}: parsing {value:?}: {reason}")
        })
    };
    match kind {
        Kind::Text | Kind::Texts => Ok(()),
        Kind::Int => number(value.parse::<i64>().map(drop), "ParseInt"),
        Kind::Uint => number(value.parse::<u64>().map(drop), "ParseUint"),
        Kind::Bool => match truth(value) {
            Some(_) => Ok(()),
            None => Err(format!("strconv.ParseBool: parsing {value:?}: invalid syntax")),
        },
        Kind::Duration => match duration::parse(value) {
            Some(_) => Ok(()),
            None => Err(format!("time: invalid duration {value:?}")),
        },
        Kind::Format => match value {
            "oci-archive" | "oci-dir" => Ok(()),
            _ => Err(format!(
                "unsupported output format {value:?}: must be \"oci-archive\" or \"oci-dir\""
            )),
        },
    }
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

impl Arguments {
    /// The text of a flag; `None` if it was not given and has no default.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.last().map(String::as_str)
    }

    /// The texts of a flag.
    pub fn texts(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a flag is set.
    pub fn is_set(&self, name: &str) -> bool {
        self.text(name).and_then(truth).unwrap_or(false)
    }

    /// The number of a flag, 0 without.
    pub fn int(&self, name: &str) -> i64 {
        self.text(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The time of a flag; `None` for no limit.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.text(name).and_then(duration::parse).filter(|time| !time.is_zero())
    }

    /// The first arguments, or the text of the first one that is missing.
    pub fn positionals<const N: usize>(&self) -> [Option<&str>; N] {
        std::array::from_fn(|n| self.positional.get(n).map(String::as_str))
    }
}

/// How a command is used.
pub fn help(program: &'static Command, path: &[&str]) -> String {
    let mut commands = vec![program];
    for name in path.iter().skip(1) {
        let last = commands[commands.len() - 1];
        commands.extend(last.subcommands.iter().find(|command| command.names[0] == *name));
    }
    let here = commands[commands.len() - 1];
    let name = path.join(" ");
    let mut text = format!("{name} - {}\n\n", here.help);
    let takes = if here.subcommands.is_empty() { here.arguments } else { "COMMAND" };
    text.push_str(&format!("Usage:\n  {name} [flags] {takes}\n"));
    let rows = here.subcommands.iter().map(|command| (command.names.join(", "), command.help));
    section(&mut text, "Commands", rows.map(|(name, help)| (name, help.to_owned())));
    let (own, above) = (&commands[commands.len() - 1..], &commands[..commands.len() - 1]);
    section(&mut text, "Flags", own.iter().flat_map(|it| it.flags).copied().flatten().map(row));
    section(
        &mut text,
        "Global flags",
        above.iter().flat_map(|it| it.flags).copied().flatten().map(row),
    );
    text
}

fn section(text: &mut String, title: &str, rows: impl Iterator<Item = (String, String)>) {
    let rows: Vec<_> = rows.collect();
    let Some(width) = rows.iter().map(|(name, _)| name.len()).max() else { return };
    text.push_str(&format!("\n{title}:\n"));
    for (name, help) in rows {
        text.push_str(&format!("  {name:width$}  {help}\n"));
    }
}

fn row(flag: &Flag) -> (String, String) {
    let value = match flag.kind {
        Kind::Bool => "",
        Kind::Text | Kind::Texts => " TEXT",
        Kind::Int | Kind::Uint => " NUMBER",
        Kind::Duration => " TIME",
        Kind::Format => " FORMAT",
    };
    let short = if flag.short.is_empty() { String::new() } else { format!(", -{}", flag.short) };
    let mut help = flag.help.to_owned();
    if !flag.default.is_empty() {
        help.push_str(&format!(" (default {})", flag.default));
    }
    if !flag.env.is_empty() {
        help.push_str(&format!(" [${}]", flag.env));
    }
    (format!("--{}{short}{value}", flag.name), help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soci::PROGRAM;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn run(line: &str) -> Arguments {
        match parse(&PROGRAM, &words(line), |_| None) {
            Ok(Asked::Run(arguments)) => arguments,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn flags_and_arguments_are_mixed() {
        for line in [
            "--root /r create --span-size 5 -p a,b --platform c --force img",
            "create img -root=/r -f=true --span-size=5 -p=a --platform b,c",
            "create --root /r --platform a -p b -p c --span-size 5 -force -- img",
        ] {
            let found = run(line);
            assert_eq!(found.path, ["create"], "{line}");
            assert_eq!(found.positional, ["img"], "{line}");
            assert_eq!(found.text("root"), Some("/r"), "{line}");
            assert_eq!(found.int("span-size"), 5, "{line}");
            assert_eq!(found.texts("platform"), ["a", "b", "c"], "{line}");
            assert!(found.is_set("force") && !found.is_set("all-platforms"), "{line}");
        }
        assert_eq!(run("index ls").path, ["index", "list"]);
        assert_eq!(run("--timeout 1m2s rebuild-db").duration("timeout").unwrap().as_secs(), 62);
        assert_eq!(run("create -- -x").positional, ["-x"]);
        let passed = run("-n test run --rm --net-host -- a b");
        assert_eq!(passed.positional, ["--rm", "--net-host", "--", "a", "b"]);
        assert_eq!(passed.text("namespace"), Some("test"));
    }

    #[test]
    fn environment_stands_between_flag_and_default() {
        let env = |name: &str| (name == "CONTAINERD_ADDRESS").then(|| "/e".to_owned());
        for (line, expected) in [("ztoc list", "/e"), ("ztoc list -a /f", "/f")] {
            let Ok(Asked::Run(found)) = parse(&PROGRAM, &words(line), env) else { panic!() };
            assert_eq!(found.text("address"), Some(expected));
            assert_eq!(found.text("namespace"), Some("default"));
        }
    }

    #[test]
    fn what_is_not_understood() {
        let check = |line: &str, expected: &str| {
            let error = parse(&PROGRAM, &words(line), |_| None).unwrap_err();
            assert_eq!(error.to_string(), expected, "{line}");
        };
        check("create --no-such-flag x", "flag provided but not defined: -no-such-flag");
        check(
            "create -span-size abc",
            "invalid value \"abc\" for flag -span-size: strconv.ParseInt: parsing \"abc\": invalid \
             syntax",
        );
        check(
            "create --min-layer-size 99999999999999999999",
            "invalid value \"99999999999999999999\" for flag -min-layer-size: strconv.ParseInt: \
             parsing \"99999999999999999999\": value out of range",
        );
        check(
            "--timeout x create",
            "invalid value \"x\" for flag -timeout: time: invalid duration \"x\"",
        );
        check("create --span-size", "flag needs an argument: -span-size");
        check("frobnicate", "No help topic for 'frobnicate'");
        check("index frobnicate", "No help topic for 'frobnicate'");
    }

    #[test]
    fn help_and_version() {
        let ask = |line: &str| parse(&PROGRAM, &words(line), |_| None).unwrap();
        assert_eq!(ask(""), Asked::Help(vec!["soci"]));
        assert_eq!(ask("index"), Asked::Help(vec!["soci", "index"]));
        assert_eq!(ask("help create"), Asked::Help(vec!["soci", "create"]));
        assert_eq!(ask("create x --help"), Asked::Help(vec!["soci", "create"]));
        assert_eq!(ask("-v"), Asked::Version);
        let text = help(&PROGRAM, &["soci", "create"]);
        assert!(
            text.contains("--span-size NUMBER") && text.contains("(default 4194304)"),
            "{text}"
        );
        assert!(text.contains("--address, -a TEXT") && text.contains("[$CONTAINERD_ADDRESS]"));
    }
}
