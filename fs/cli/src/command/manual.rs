//! `spanfs completions` and `spanfs man`, both made from the definition of the command line.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use clap::CommandFactory as _;

use crate::arguments::{Arguments, Completions, Man};
use crate::failure::Failure;

pub(crate) fn completions(arguments: &Completions) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "spanfs", &mut text);
    write(&text)
}

pub(crate) fn man(arguments: &Man) -> Result<(), Failure> {
    let command = Arguments::command();
    let Some(directory) = &arguments.directory else {
        return write(&page(command, "writing the manual page")?);
    };
    fs::create_dir_all(directory)
        .map_err(|error| Failure::io(format!("making {}", directory.display()), &error))?;
    write_page(directory, "spanfs", command.clone())?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        let name = format!("spanfs-{}", subcommand.get_name());
        write_page(directory, &name, subcommand.clone().name(leak(&name)))?;
    }
    Ok(())
}

/// clap wants names that live for ever; there are ten, once per process.
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

fn write(text: &[u8]) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text) {
        // Whoever reads through `head` has what he wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("writing to stdout", &error))
        }
        _ => Ok(()),
    }
}
