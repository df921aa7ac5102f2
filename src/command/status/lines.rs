//! Lines for a terminal, in blocks. Where they are more than it has rows, those that matter least
//! give way.

use crate::words::counted;

/// Columns of a line, where texts allow.
pub(super) const WIDTH: usize = 80;

/// Columns of the names that stand in front of lines.
pub(super) const MARGIN: usize = 11;

/// How large a terminal is, in letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Screen {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Screen {
    /// Rows that a line takes.
    fn rows_of(self, line: &str) -> usize {
        line.chars().count().div_ceil(self.columns.max(1)).max(1)
    }
}

/// A part of the state. The first gives way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    About,
    Transactions,
    Latency,
    Rules,
    Servers,
    Readiness,
    Flow,
    Verdict,
}

impl Part {
    /// Those that give way, in this order.
    const YIELDING: [Part; 7] = [
        Part::About,
        Part::Transactions,
        Part::Latency,
        Part::Rules,
        Part::Servers,
        Part::Readiness,
        Part::Flow,
    ];

    /// Lines that stay of it while another part has more than these.
    fn least(self) -> usize {
        match self {
            Part::About | Part::Latency => 1,
            Part::Transactions | Part::Readiness => 2,
            Part::Rules | Part::Servers => 4,
            Part::Flow | Part::Verdict => 6,
        }
    }
}

/// Lines of one part, and how many more there were.
struct Block {
    part: Part,
    name: String,
    lines: Vec<String>,
    hidden: usize,
    /// The line that says all of it in short, if one can.
    short: Option<String>,
    /// Whether an empty line stands before it.
    is_apart: bool,
}

impl Block {
    /// Takes lines from its end until `excess` rows are saved, or `least` lines are left, with the
    /// one that says how many more there were. Gives how many rows that saved.
    fn give_way(&mut self, least: usize, excess: usize, screen: Screen) -> usize {
        if self.hidden == 0 && self.lines.len() <= least {
            return 0;
        }
        let rows = |lines: &[String]| lines.iter().map(|line| screen.rows_of(line)).sum::<usize>();
        if let Some(short) = self.short.take() {
            let before = rows(&self.lines);
            self.lines = vec![short];
            return before.saturating_sub(rows(&self.lines));
        }
        let mut saved = 0;
        while saved < excess && self.lines.len() >= least {
            let Some(line) = self.lines.pop() else { break };
            // The line that says so takes a row.
            saved += screen.rows_of(&line) - usize::from(self.hidden == 0);
            self.hidden += 1;
        }
        saved
    }

    /// Its lines, with the one that says how many more there were.
    fn into_lines(self) -> impl Iterator<Item = String> {
        let name = if self.lines.is_empty() { self.name } else { String::new() };
        let more = (self.hidden > 0).then(|| {
            let more = format!("{name:<MARGIN$}… and {}", counted(self.hidden, "more line"));
            more.trim_end().to_owned()
        });
        self.lines.into_iter().chain(more)
    }
}

/// Lines under names in front of them.
#[derive(Default)]
pub(super) struct Lines(Vec<Block>);

impl Lines {
    /// Begins another part.
    pub(super) fn begin(&mut self, part: Part) {
        let is_apart = !self.0.is_empty();
        let (name, lines, short) = (String::new(), Vec::new(), None);
        self.0.push(Block { part, name, lines, hidden: 0, short, is_apart });
    }

    /// Adds a line, with a name in front; too long, it goes on in the next line.
    pub(super) fn add(&mut self, name: &str, text: &str) {
        let mut margin = format!("{name:<MARGIN$}");
        let mut line = String::new();
        for word in text.split(' ') {
            let columns = line.chars().count() + word.chars().count() + 1;
            if !line.is_empty() && MARGIN + columns > WIDTH {
                self.push(name, &format!("{margin}{line}"));
                margin = " ".repeat(MARGIN);
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.push(name, &format!("{margin}{line}"));
    }

    /// Adds a line as it is, of which the part may be called by this name.
    pub(super) fn push(&mut self, name: &str, line: &str) {
        let Some(block) = self.0.last_mut() else { return };
        if block.name.is_empty() {
            name.clone_into(&mut block.name);
        }
        block.lines.push(line.trim_end().to_owned());
    }

    /// Lets this line take the place of the part where that gives way.
    pub(super) fn in_short(&mut self, name: &str, text: &str) {
        if let Some(block) = self.0.last_mut() {
            block.short = Some(format!("{name:<MARGIN$}{text}"));
        }
    }

    /// Takes away what does not fit, but for the verdict.
    pub(super) fn fit(&mut self, screen: Screen) {
        for is_last_resort in [false, true] {
            for part in Part::YIELDING {
                for at in (0..self.0.len()).rev() {
                    let excess = self.rows(screen).saturating_sub(screen.rows);
                    let block = &mut self.0[at];
                    if excess > 0 && block.part == part {
                        let least = if is_last_resort { 1 } else { part.least() };
                        block.give_way(least, excess, screen);
                    }
                }
            }
            for at in (0..self.0.len()).rev() {
                self.0[at].is_apart &= self.rows(screen) <= screen.rows;
            }
        }
        for part in Part::YIELDING {
            if self.rows(screen) > screen.rows {
                self.0.retain(|block| block.part != part);
            }
        }
    }

    fn rows(&self, screen: Screen) -> usize {
        let rows = |block: &Block| {
            let lines: usize = block.lines.iter().map(|line| screen.rows_of(line)).sum();
            lines + usize::from(block.hidden > 0) + usize::from(block.is_apart)
        };
        self.0.iter().map(rows).sum()
    }

    /// Gives all of them, each with its end.
    pub(super) fn into_text(self) -> String {
        let mut text = String::new();
        for block in self.0 {
            if block.is_apart && !text.is_empty() {
                text.push('\n');
            }
            for line in block.into_lines() {
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Lines, Part, Screen};

    fn lines() -> Lines {
        let mut lines = Lines::default();
        for (part, name, count) in [
            (Part::Readiness, "", 3),
            (Part::Verdict, "verdict", 3),
            (Part::Flow, "flow", 2),
            (Part::Latency, "gone", 9),
            (Part::Rules, "rule", 30),
            (Part::Transactions, "last", 8),
        ] {
            lines.begin(part);
            (0..count).for_each(|at| {
                lines.push(if at == 0 { name } else { "" }, &format!("{part:?} {at}"));
            });
            if part == Part::Latency {
                lines.in_short("gone", "soon");
            }
        }
        lines
    }

    #[test]
    fn a_screen_of_any_height_has_the_verdict_and_no_row_too_many() {
        for rows in 3..=70 {
            let mut lines = lines();
            lines.fit(Screen { rows, columns: 80 });
            let text = lines.into_text();
            assert!(text.lines().count() <= rows, "{rows}: {text}");
            assert!(text.contains("Verdict 0\nVerdict 1\nVerdict 2\n"), "{rows}: {text}");
            assert_eq!(text.lines().count() == 60, rows >= 60, "{rows}: {text}");
            // As long as a line of each part fits, whoever is cut says how much is missing.
            let shown = text.lines().filter(|line| !line.is_empty() && !line.contains('…'));
            let missing = text.lines().filter_map(|line| line.split("… and ").nth(1));
            let missing: usize =
                missing.map(|more| more.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
            let short = if text.contains("gone       soon") { 8 } else { 0 };
            if rows >= 8 {
                assert_eq!(shown.count() + missing + short, 55, "{rows}: {text}");
            }
        }
    }

    #[test]
    fn what_matters_least_gives_way_first() {
        let mut lines = lines();
        lines.fit(Screen { rows: 24, columns: 80 });
        let text = lines.into_text();
        assert!(text.contains("Flow 1") && text.contains("Rules 1\n"), "{text}");
        assert!(text.contains("Transactions 0\n           … and 7 more lines\n"), "{text}");
        assert!(text.contains("gone       soon\n"), "{text}");
    }

    /// A line that is longer than the terminal takes two of its rows.
    #[test]
    fn long_lines_count_as_the_rows_that_they_take() {
        let mut lines = Lines::default();
        lines.begin(Part::Verdict);
        lines.push("", "well");
        lines.begin(Part::Servers);
        (0..4).for_each(|_| lines.push("redis", &"x".repeat(50)));
        lines.fit(Screen { rows: 6, columns: 40 });
        let long = "x".repeat(50);
        assert_eq!(
            lines.into_text(),
            format!("well\n{long}\n{long}\n           … and 2 more lines\n")
        );
    }
}
