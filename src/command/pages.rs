//! `walsweep completions` and `walsweep man`: what the command line tells of itself.

use std::fs;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::cli::{Cli, ManArgs};
use super::failure::{Failure, halted, print};
use super::manual::{self, Section};

/// Names of the programs in the pages' titles.
const MANUAL: &str = "walsweep";

/// `walsweep completions`.
///
/// # Errors
///
/// 1 when standard output is closed.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "walsweep", &mut text);
    print(&String::from_utf8(text).map_err(halted)?)
}

/// `walsweep man`.
///
/// # Errors
///
/// 2 when there is no such command; 1 when standard output is closed, or a file cannot be written.
pub fn man(arguments: &ManArgs) -> Result<(), Failure> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    if let Some(folder) = &arguments.to {
        let in_folder = |error| halted(error).of(&format!("write into `{}`", folder.display()));
        fs::create_dir_all(folder).map_err(in_folder)?;
        for command in std::iter::once(&program).chain(program.get_subcommands()) {
            let file = folder.join(Man::new(command.clone()).get_filename());
            fs::write(&file, page(&program, command)?).map_err(in_folder)?;
        }
        return Ok(());
    }
    let Some(name) = &arguments.page else { return print(&page(&program, &program)?) };
    let Some(command) = program.find_subcommand(name) else {
        let names: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
        let message = format!("there is no command `{name}`");
        let hint = format!("the commands are {}", names.join(", "));
        return Err(Failure::halted(message).with_status(2).with_hint(Some(hint)));
    };
    print(&page(&program, command)?)
}

/// The page of a command, or of the whole program.
fn page(program: &clap::Command, command: &clap::Command) -> Result<String, Failure> {
    let is_program = command.get_name() == program.get_name();
    let version = format!("walsweep {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(version).manual(MANUAL);
    let mut text = Vec::new();
    man.render_title(&mut text).map_err(halted)?;
    man.render_name_section(&mut text).map_err(halted)?;
    man.render_synopsis_section(&mut text).map_err(halted)?;
    man.render_description_section(&mut text).map_err(halted)?;
    man.render_options_section(&mut text).map_err(halted)?;
    if is_program {
        man.render_subcommands_section(&mut text).map_err(halted)?;
    }
    let mut roff = Roff::new();
    let sections =
        if is_program { manual::SECTIONS } else { manual::of_command(command.get_name()) };
    sections.iter().for_each(|section| write_section(&mut roff, section));
    let name = (!is_program).then(|| command.get_name());
    write_examples(&mut roff, name);
    write_see_also(&mut roff, program, name);
    // The lines about quotes that each part begins with are in the first one already.
    let rest = roff.to_roff();
    text.extend(rest.bytes());
    String::from_utf8(text).map_err(halted)
}

/// A heading, and below it each term with its meaning.
fn write_section(roff: &mut Roff, section: &Section) {
    roff.control("SH", [section.heading]);
    for (term, meaning) in section.entries {
        roff.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
    }
}

/// The examples of a command, or of the program.
fn write_examples(roff: &mut Roff, command: Option<&str>) {
    let mut examples = manual::EXAMPLES.iter().filter(|one| one.command == command).peekable();
    if examples.peek().is_none() {
        return;
    }
    roff.control("SH", ["EXAMPLES"]);
    for example in examples {
        roff.control("PP", []).text([roman(example.says)]);
        roff.control("RS", ["4"]).control("nf", []);
        for line in example.lines {
            roff.text([roman(*line)]);
        }
        roff.control("fi", []).control("RE", []);
    }
}

/// The other pages.
fn write_see_also(roff: &mut Roff, program: &clap::Command, command: Option<&str>) {
    let others = program.get_subcommands().map(clap::Command::get_name);
    let pages: Vec<String> = match command {
        None => others.map(|name| format!("walsweep-{name}")).collect(),
        Some(_) => vec!["walsweep".to_owned()],
    };
    let last = pages.len().saturating_sub(1);
    let mut line: Vec<Inline> = Vec::new();
    for (at, page) in pages.into_iter().enumerate() {
        let end = if at == last { "(1)" } else { "(1), " };
        line.extend([bold(page), roman(end)]);
    }
    roff.control("SH", ["SEE ALSO"]).text(line);
}
