//! Where the demonstration is shown: colours and a line of progress on a terminal, plain text
//! elsewhere and where `NO_COLOR` is set.

use std::io::{self, IsTerminal, Stdout, Write};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};

use super::{Error, REPORT, io_error};

/// A heading.
pub(super) const TITLE: Style = Style::new().bold();

/// As it should be.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();

/// As it should not be.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();

/// The columns that a line of progress takes.
const WIDTH: usize = 60;

/// Standard output.
pub(super) struct Show {
    out: AutoStream<Stdout>,
    is_terminal: bool,
}

impl Show {
    /// Colours are left out where `NO_COLOR` is set, and where nobody sees them.
    pub(super) fn new() -> Show {
        let is_terminal = io::stdout().is_terminal();
        Show { out: anstream::stdout(), is_terminal }
    }

    /// Says on a terminal what is going on. The next step, or text, takes the place of it.
    pub(super) fn step(&mut self, step: &str) -> Result<(), Error> {
        self.tell_step(step).map_err(io_error(REPORT))
    }

    fn tell_step(&mut self, step: &str) -> io::Result<()> {
        if !self.is_terminal {
            return Ok(());
        }
        write!(self.out, "{}", line(step))?;
        self.out.flush()
    }

    /// Takes the line of progress away.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        self.step("")
    }
}

/// A line of progress over the one before it; blanks do what not every terminal has a code for.
fn line(step: &str) -> String {
    let text = if step.is_empty() { String::new() } else { format!("… {step}") };
    format!("\r{text:<WIDTH$}\r")
}

impl Write for Show {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Gives a text without its colours.
#[cfg(test)]
pub(super) fn plain(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut colored = Vec::new();
    write(&mut colored).unwrap();
    let text = String::from_utf8(colored).unwrap();
    anstream::adapter::strip_str(&text).to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{BAD, WIDTH, line, plain};

    #[test]
    fn a_line_of_progress_takes_the_place_of_the_one_before() {
        for step in ["", "page 1", "a longer one"] {
            let line = line(step);
            assert!(line.starts_with('\r') && line.ends_with('\r'), "{line:?}");
            assert_eq!(line.chars().count(), WIDTH + 2, "{line:?}");
        }
    }

    /// Words say it, and colours only once more.
    #[test]
    fn a_text_reads_without_its_colours() {
        let text = plain(|out| write!(out, "{BAD}WRONG{BAD:#}: a"));
        assert_eq!(text, "WRONG: a");
        assert_ne!(format!("{BAD}"), "");
    }
}
