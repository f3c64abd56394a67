//! `lopper completions` and `lopper man`: what a shell and a reader of manuals take.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;
use super::output::Output;
use crate::error::{Error, Result};

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct Manual {
    /// The command, `bench kernels` for instance; without one, the program
    command: Vec<String>,
}

/// Prints a script that completes commands, flags and their values.
pub(super) fn completions(arguments: &Completions, output: &Output) {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "lopper", &mut script);
    output.text(&String::from_utf8_lossy(&script));
}

/// Prints the manual's page of a command, for `man -l -`.
pub(super) fn manual(arguments: &Manual, output: &Output) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let mut page: &Command = &command;
    for name in &arguments.command {
        page = page.find_subcommand(name).ok_or_else(|| {
            let names =
                page.get_subcommands().filter(|of| !of.is_hide_set()).map(Command::get_name);
            Error::Argument {
                argument: "man".into(),
                expected: names.collect::<Vec<_>>().join(", "),
                found: name.clone(),
            }
        })?;
    }
    let mut text = Vec::new();
    let rendered = Man::new(page.clone()).render(&mut text);
    rendered.map_err(Error::write("standard output"))?;
    output.text(&String::from_utf8_lossy(&text));
    Ok(())
}
