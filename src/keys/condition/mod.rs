//! `when`: a condition in CEL (<https://cel.dev>) over the two versions of a row and the operation.
//!
//! The crate `cel` reads the text; the tree is evaluated here, because what is not known must not
//! end the evaluation, and because values stand in the stream as text, of which nothing is copied.
//! Three truth values: what the answer does not depend on may stay unknown, else the condition is
//! unknown, and that counts as true (I5). So does an evaluation that fails, such as a division by
//! zero. Evaluating takes no memory and cannot panic; depth and size are limited when it is read.

mod decimal;
mod evaluate;
mod lower;
mod parse;
mod time;
mod typing;
mod value;
#[cfg(test)]
mod properties_tests;
#[cfg(test)]
mod tests;

pub(super) use evaluate::{Fault, Sources, Undecided};
pub(super) use value::{Kind, kind_of};

use super::filter::Flaw;
use super::template::Version;
use crate::config::{Location, Script};

/// Whether a text is a timestamp or date as Postgres sends it.
pub(super) fn is_time(text: &str) -> bool {
    time::time(text.as_bytes()).is_some()
}

/// A compiled condition.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    /// Where it stands, and its text.
    pub(super) script: Script,
    root: Node,
    /// The columns that it reads, each version of each once; the index is [`What::Column`]'s.
    pub(super) columns: Vec<(Version, String)>,
}

/// A part of the condition, and where it begins in the text, in bytes.
#[derive(Clone, Debug, PartialEq)]
struct Node {
    at: usize,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Constant(Constant),
    /// Index into [`Condition::columns`].
    Column(usize),
    /// The operation's name.
    Operation,
    /// Whether there is no such version of the row.
    Absent(Version),
    Not(Box<Node>),
    Negative(Box<Node>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    /// Condition, then, else.
    Choice(Box<[Node; 3]>),
    Compare(Comparison, Box<[Node; 2]>),
    In(Box<Node>, Vec<Node>),
    Arithmetic(Arithmetic, Box<[Node; 2]>),
    Call(Function, Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Constant {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Box<str>),
    /// Microseconds since 1970-01-01 00:00 UTC.
    Time(i64),
    /// Microseconds.
    Span(i64),
}

/// How two values compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Different,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Size,
    StartsWith,
    EndsWith,
    Contains,
    Int,
    Double,
    Timestamp,
    Duration,
}

/// Something wrong, and where in the condition's text, in bytes.
type Flaws = Vec<(usize, Flaw)>;

impl Condition {
    /// Reads a condition. Errors: everything that is wrong with it, each at its place in the file.
    pub(super) fn parse(script: &Script) -> Result<Condition, Vec<(Location, Flaw)>> {
        let placed = |flaws: Flaws| {
            flaws.into_iter().map(|(at, flaw)| (script.place(at), flaw)).collect::<Vec<_>>()
        };
        let parsed = parse::parse(&script.text).map_err(placed)?;
        let (root, columns, mut flaws) = lower::lower(&parsed);
        let condition = Condition { script: script.clone(), root, columns };
        flaws.extend(typing::check(&condition, &|_| Kind::Any));
        flaws.sort_by_key(|(at, _)| *at);
        if flaws.is_empty() { Ok(condition) } else { Err(placed(flaws)) }
    }

    /// Lists the parts that do not fit the kinds that the columns have, by their index, each at its
    /// place.
    pub(super) fn misfits(&self, kind: &dyn Fn(usize) -> Kind) -> Vec<(Location, Flaw)> {
        let flaws = typing::check(self, kind).into_iter();
        flaws.map(|(at, flaw)| (self.script.place(at), flaw)).collect()
    }
}
