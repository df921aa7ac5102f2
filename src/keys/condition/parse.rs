//! A condition's text to the tree of the crate `cel`, or to what is wrong with it.

use std::thread;

use cel::IdedExpr;
use cel::common::ast::SourceInfo;
use cel::parser::Parser;

use super::Flaws;
use crate::keys::filter::Flaw;

/// The longest condition, in bytes: room for a list of some hundred values, and a tree that no
/// walk over it is too deep for.
const TEXT_MAX: usize = 4096;

/// How deep brackets and choices may be nested.
const DEPTH_MAX: u16 = 32;

/// The parser takes up to 350 kB of stack a level in a build without optimization. Only what is
/// used of it becomes memory.
const STACK_SIZE: usize = 64 << 20;

/// The tree, and where its parts stand.
pub(super) struct Parsed {
    pub(super) root: IdedExpr,
    pub(super) places: SourceInfo,
}

/// Reads a condition. It does so on a thread of its own: the parser's recursion may need more stack
/// than is left, and a defect of it must end as a message.
pub(super) fn parse(text: &str) -> Result<Parsed, Flaws> {
    let whole = |message: String, hint: &str| vec![(0, Flaw::new(message, hint))];
    if text.trim().is_empty() {
        return Err(whole("the condition is empty".to_owned(), "leave `when` out"));
    }
    if text.len() > TEXT_MAX {
        let message = format!("the condition is longer than {TEXT_MAX} bytes");
        return Err(whole(message, "say it shorter, or in several rules"));
    }
    let outcome = thread::scope(|scope| {
        let builder = thread::Builder::new().name("when".to_owned()).stack_size(STACK_SIZE);
        let reader = builder.spawn_scoped(scope, || {
            let parser = Parser::new().max_recursion_depth(DEPTH_MAX).error_recovery_limit(4);
            let parser = parser.enable_ident_escape_syntax(true);
            let read = parser.parse_with_source_info(text);
            read.map(|(root, places)| Parsed { root, places })
                .map_err(|errors| flaws(text, errors.errors))
        });
        reader.map(thread::ScopedJoinHandle::join)
    });
    match outcome {
        Ok(Ok(read)) => read,
        Ok(Err(_panic)) => Err(whole("the condition cannot be read".to_owned(), SYNTAX)),
        Err(error) => Err(whole(format!("the condition cannot be read: {error}"), SYNTAX)),
    }
}

const SYNTAX: &str = "write it in CEL, such as `old.status != new.status`; see https://cel.dev";

/// The first error: those behind it follow from the first, more often than not.
fn flaws(text: &str, errors: Vec<cel::ParseError>) -> Flaws {
    let first = errors.into_iter().next();
    let (place, message) = first.map_or(((0, 0), String::new()), |one| (one.pos, one.msg));
    let message = message.strip_prefix("Syntax error: ").unwrap_or(&message);
    // The list of what could stand there names the parser's own tokens.
    let message = message.split(" expecting {").next().unwrap_or_default();
    let message = message.split('\n').next().unwrap_or_default().replace("<EOF>", "the end");
    vec![(offset(text, place), Flaw::new(format!("not CEL: {message}"), SYNTAX))]
}

/// The offset in bytes of a line and column, both from 1.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let count = |number: isize| usize::try_from(number - 1).unwrap_or(0);
    let before: usize = text.split_inclusive('\n').take(count(line)).map(str::len).sum();
    let rest = text.get(before..).unwrap_or_default();
    let end = rest.char_indices().nth(count(column)).map_or(rest.len(), |(at, _)| at);
    before + end
}
