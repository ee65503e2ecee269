//! The `spanfs` command.
#![forbid(unsafe_code)]

mod arguments;
mod background;
mod command;
mod demo;
mod enter;
mod failure;
mod held;
mod leftover;
mod namespace;
mod output;
mod quantity;
mod runtime;
mod session;
mod settings;
mod signals;
mod starts;
mod supervise;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use arguments::{Arguments, Command};
use failure::Failure;
use output::Output;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Enter(program) = &arguments.command {
        return enter::enter(&program.program);
    }
    let output = Output::new(arguments.json, arguments.quiet);
    match start_log(&arguments.log).and_then(|()| run(arguments.command, &output)) {
        Ok(code) => code,
        Err(failure) => {
            if output.json {
                output.json(&failure.to_json());
            }
            // Without stderr there is nobody to tell.
            drop(writeln!(std::io::stderr().lock(), "{failure}"));
            failure.exit_code()
        }
    }
}

fn run(command: Command, output: &Output) -> Result<ExitCode, Failure> {
    let done = |result: Result<(), Failure>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::Mount(arguments) => command::mount::mount(&arguments, output),
        Command::Index(arguments) => done(command::index::index(&arguments, output)),
        Command::Inspect(arguments) => done(command::inspect::inspect(&arguments, output)),
        Command::Cat(arguments) => done(command::cat::cat(&arguments, output)),
        Command::Doctor(arguments) => command::doctor::doctor(&arguments, output),
        Command::Why(arguments) => done(command::why::why(&arguments, output)),
        Command::Demo(arguments) => demo::demo(&arguments, output),
        Command::Bench(arguments) => command::bench::bench(&arguments, output),
        Command::Umount(arguments) => done(command::umount::umount(&arguments, output)),
        Command::Run(arguments) => command::run::run(&arguments, output),
        Command::Status(arguments) => done(command::status::status(&arguments, output)),
        Command::Trace(arguments) => done(command::trace::trace(&arguments, output)),
        Command::Completions(arguments) => done(command::manual::completions(&arguments, output)),
        Command::Man(arguments) => done(command::manual::man(&arguments, output)),
        Command::Enter(_) => unreachable!("taken before the log was started"),
    }
}

fn start_log(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::caused(failure::Code::Usage, "reading --log", &error))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
