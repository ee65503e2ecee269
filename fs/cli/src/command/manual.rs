//! `spanfs completions` and `spanfs man`, both made from the definition of the command line.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;

use crate::arguments::{Arguments, Completions, Man};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) fn completions(arguments: &Completions, output: &Output) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "spanfs", &mut text);
    write(&text, output)
}

pub(crate) fn man(arguments: &Man, output: &Output) -> Result<(), Failure> {
    let command = Arguments::command();
    let Some(directory) = &arguments.directory else {
        return write(&page(command, "writing the manual page")?, output);
    };
    fs::create_dir_all(directory)
        .map_err(|error| Failure::io(format!("making {}", directory.display()), &error))?;
    write_pages(directory, "spanfs", command)
}

/// A command's page, and those of its subcommands.
fn write_pages(directory: &Path, name: &str, command: clap::Command) -> Result<(), Failure> {
    let shown = |it: &&clap::Command| !it.is_hide_set() && it.get_name() != "help";
    for subcommand in command.get_subcommands().filter(shown) {
        let name = format!("{name}-{}", subcommand.get_name());
        write_pages(directory, &name, subcommand.clone())?;
    }
    write_page(directory, name, command.name(leak(name)))
}

/// clap wants names that live for ever; there are a dozen, once per process.
fn leak(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

fn write_page(directory: &Path, name: &str, command: clap::Command) -> Result<(), Failure> {
    let path = directory.join(format!("{name}.1"));
    let attempted = format!("writing {}", path.display());
    let page = page(command, &attempted)?;
    fs::write(&path, page).map_err(|error| Failure::io(attempted, &error))
}

fn page(command: clap::Command, attempted: &str) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Failure::io(attempted, &error))?;
    Ok(page)
}

fn write(text: &[u8], output: &Output) -> Result<(), Failure> {
    output.raw(text).map_err(|error| Failure::io("writing to stdout", &error))
}
