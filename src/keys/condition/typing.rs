//! Parts of a condition that do not go together, as far as it is known before a row is seen:
//! without the kinds of the columns when the configuration is read, with them when the catalog is.

use super::value::Kind;
use super::{Arithmetic, Comparison, Condition, Constant, Flaws, Function, Node, What};
use crate::keys::filter::Flaw;

const OPERATIONS: [&str; 4] = ["insert", "update", "delete", "truncate"];

/// Every flaw, in the order of the text; `kind` gives the kind of a column by its index.
pub(super) fn check(condition: &Condition, kind: &dyn Fn(usize) -> Kind) -> Flaws {
    let mut typing = Typing { kind, flaws: Vec::new() };
    typing.truth(&condition.root, "the condition");
    typing.flaws.sort_by_key(|(at, _)| *at);
    typing.flaws
}

struct Typing<'a> {
    kind: &'a dyn Fn(usize) -> Kind,
    flaws: Flaws,
}

impl Typing<'_> {
    fn flaw(&mut self, at: usize, message: String, hint: &str) {
        self.flaws.push((at, Flaw::new(message, hint)));
    }

    fn truth(&mut self, node: &Node, what: &str) {
        let kind = self.kind(node);
        if !matches!(kind, Kind::Any | Kind::Bool) {
            let message = format!("{what} gives {}, not true or false", kind.name());
            self.flaw(node.at, message, "compare it with something: `new.points > 0`");
        }
    }

    fn kind(&mut self, node: &Node) -> Kind {
        match &node.what {
            What::Constant(constant) => match constant {
                Constant::Null => Kind::Null,
                Constant::Bool(_) => Kind::Bool,
                Constant::Int(_) => Kind::Int,
                Constant::Double(_) => Kind::Double,
                Constant::Text(_) => Kind::Text,
                Constant::Time(_) => Kind::Time,
                Constant::Span(_) => Kind::Span,
            },
            What::Column(index) => (self.kind)(*index),
            What::Operation => Kind::Text,
            What::Absent(_) => Kind::Bool,
            What::Not(one) => {
                self.truth(one, "what stands behind `!`");
                Kind::Bool
            }
            What::Negative(one) => self.negative(one),
            What::And(pair) | What::Or(pair) => {
                let sign = if matches!(node.what, What::And(_)) { "&&" } else { "||" };
                pair.iter().for_each(|side| self.truth(side, &format!("a side of `{sign}`")));
                Kind::Bool
            }
            What::Choice(three) => {
                self.truth(&three[0], "what stands before `?`");
                let (yes, no) = (self.kind(&three[1]), self.kind(&three[2]));
                if yes == no { yes } else { Kind::Any }
            }
            What::Compare(comparison, pair) => {
                self.compare(node.at, *comparison, &pair[0], &pair[1]);
                Kind::Bool
            }
            What::In(one, list) => {
                for item in list {
                    self.compare(item.at, Comparison::Equal, one, item);
                }
                Kind::Bool
            }
            What::Arithmetic(arithmetic, pair) => {
                let (one, other) = (self.kind(&pair[0]), self.kind(&pair[1]));
                self.compute(node.at, *arithmetic, one, other)
            }
            What::Call(function, arguments) => self.call(node.at, *function, arguments),
        }
    }

    fn negative(&mut self, one: &Node) -> Kind {
        let kind = self.kind(one);
        if !matches!(kind, Kind::Any | Kind::Int | Kind::Double | Kind::Span) {
            self.flaw(one.at, format!("`-` stands before {}", kind.name()), NUMBERS);
        }
        kind
    }

    fn compare(&mut self, at: usize, comparison: Comparison, one: &Node, other: &Node) {
        let (first, second) = (self.kind(one), self.kind(other));
        let is_equality = matches!(comparison, Comparison::Equal | Comparison::Different);
        for (side, constant) in [(one, other), (other, one)] {
            if let (What::Operation, What::Constant(Constant::Text(text))) =
                (&side.what, &constant.what)
                && !OPERATIONS.contains(&&**text)
            {
                let hint = "it is 'insert', 'update', 'delete' or 'truncate'";
                self.flaw(constant.at, format!("`op` is never `{text}`"), hint);
            }
        }
        let has_null = first == Kind::Null || second == Kind::Null;
        let misfit = match (class(first), class(second)) {
            (Class::Any, _) | (_, Class::Any) => false,
            _ if has_null => !is_equality,
            (one, other) => one != other,
        };
        if misfit {
            let message = format!("{} is compared with {}", first.name(), second.name());
            let hint = match (class(first), class(second)) {
                (Class::Time, Class::Text) | (Class::Text, Class::Time) => {
                    "write a time as `timestamp('2026-07-19T18:00:00Z')`"
                }
                (Class::Number, Class::Text) | (Class::Text, Class::Number) => {
                    "write a number without quotes, a text with them"
                }
                _ => "compare values of one kind",
            };
            self.flaw(at, message, hint);
        } else if !is_equality && (first == Kind::Label || second == Kind::Label) {
            let hint = "only `==`, `!=`, `in`, `startsWith`, `endsWith` and `contains` fit it";
            self.flaw(at, format!("{} has no order", Kind::Label.name()), hint);
        }
    }

    fn compute(&mut self, at: usize, with: Arithmetic, one: Kind, other: Kind) -> Kind {
        let is_sum = matches!(with, Arithmetic::Add | Arithmetic::Subtract);
        match (one, other) {
            (Kind::Any, _) | (_, Kind::Any) => Kind::Any,
            (Kind::Int, Kind::Int) => Kind::Int,
            (Kind::Double, Kind::Double) if with != Arithmetic::Remainder => Kind::Double,
            (Kind::Time, Kind::Time) if with == Arithmetic::Subtract => Kind::Span,
            (Kind::Span, Kind::Span) if is_sum => Kind::Span,
            (Kind::Time, Kind::Span) if is_sum => Kind::Time,
            (Kind::Span, Kind::Time) if with == Arithmetic::Add => Kind::Time,
            _ => {
                let message = format!("{} is computed with {}", one.name(), other.name());
                self.flaw(at, message, NUMBERS);
                Kind::Any
            }
        }
    }

    fn call(&mut self, at: usize, function: Function, arguments: &[Node]) -> Kind {
        let kinds: Vec<Kind> = arguments.iter().map(|argument| self.kind(argument)).collect();
        let is_text = |kind: &Kind| matches!(class(*kind), Class::Text | Class::Any);
        let fits = match function {
            Function::Size | Function::StartsWith | Function::EndsWith | Function::Contains => {
                kinds.iter().all(is_text)
            }
            Function::Int => kinds
                .iter()
                .all(|kind| is_text(kind) || matches!(class(*kind), Class::Number | Class::Time)),
            Function::Double => {
                kinds.iter().all(|kind| is_text(kind) || class(*kind) == Class::Number)
            }
            Function::Timestamp => kinds.iter().all(|kind| is_text(kind) || *kind == Kind::Time),
            Function::Duration => kinds.iter().all(|kind| is_text(kind) || *kind == Kind::Span),
        };
        if !fits {
            let given: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            let message = format!("the function is given {}", given.join(" and "));
            self.flaw(at, message, "give it a text");
        }
        match function {
            Function::Size | Function::Int => Kind::Int,
            Function::StartsWith | Function::EndsWith | Function::Contains => Kind::Bool,
            Function::Double => Kind::Double,
            Function::Timestamp => Kind::Time,
            Function::Duration => Kind::Span,
        }
    }
}

const NUMBERS: &str = "compute with integers, or with doubles: `double(new.price) * 2.0`";

/// Kinds that compare with each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Any,
    Null,
    Bool,
    Number,
    Text,
    Time,
    Span,
}

fn class(kind: Kind) -> Class {
    match kind {
        Kind::Any => Class::Any,
        Kind::Null => Class::Null,
        Kind::Bool => Class::Bool,
        Kind::Int | Kind::Double | Kind::Decimal => Class::Number,
        Kind::Text | Kind::Padded | Kind::Label => Class::Text,
        Kind::Time => Class::Time,
        Kind::Span => Class::Span,
    }
}
