//! What a condition asks of a row's columns for one operation, where SQL can ask the very same.
//!
//! A condition has three truth values, and is undecided where a value is NULL or not known. Each of
//! its parts is two formulas of two truth values: it `may` be true unless it is false, and it
//! `must` be true only where it is. That is exact: `!` swaps the two, and `&&` and `||` of three
//! values (Kleene's) are those of two on either formula. What a row is asked is a comparison of one
//! column with a constant, of types that compare in Postgres as they do here: booleans, integers,
//! and for equality alone texts, of ASCII, which is the same bytes in every encoding of a server.

use super::{Comparison, Condition, Constant, Node, What};
use crate::keys::template::Version;

/// A formula of two truth values over the columns of a row, or of both of its versions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Formula {
    /// The same for every row.
    Always(bool),
    /// One column and one constant.
    Ask(Ask),
    /// Each of them; at least two, none of them constant.
    All(Vec<Formula>),
    /// One of them; at least two, none of them constant.
    Any(Vec<Formula>),
}

/// A comparison of a column with a constant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    /// Of which version the column is; `Each` if there is only one.
    pub(in crate::keys) version: Version,
    /// The column.
    pub(crate) column: String,
    /// How it compares.
    pub(crate) comparison: Comparison,
    /// The constant.
    pub(crate) literal: Literal,
    /// The answer if the column is NULL.
    pub(crate) null: bool,
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    /// NULL: only equality is asked.
    Null,
    /// Only equality is asked.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Printable ASCII; only equality is asked.
    Text(Box<str>),
}

/// A part of a condition: whether it is not false, and whether it is true.
#[derive(Clone, Debug)]
struct Both {
    may: Formula,
    must: Formula,
}

/// A condition, the operation, and what the columns are.
struct Reduction<'a> {
    condition: &'a Condition,
    operation: &'static str,
    type_id: &'a dyn Fn(&str) -> Option<u32>,
}

impl Condition {
    /// For which rows the condition counts as true when `operation` is done to them; `None` where
    /// SQL cannot ask the same. `type_id` is `None` for a column that must not be asked for.
    pub(in crate::keys) fn reduce(
        &self,
        operation: &'static str,
        type_id: &dyn Fn(&str) -> Option<u32>,
    ) -> Option<Formula> {
        let reduction = Reduction { condition: self, operation, type_id };
        reduction.both(&self.root).map(|both| both.may)
    }
}

impl Reduction<'_> {
    fn both(&self, node: &Node) -> Option<Both> {
        Some(match &node.what {
            What::Constant(Constant::Bool(truth)) => Both::decided(*truth),
            What::Absent(version) => Both::decided(!self.has(*version)),
            What::Column(_) => {
                self.compare(Comparison::Equal, node, &Literal::Bool(true))?.or_null_undecided()
            }
            What::Not(one) => {
                let Both { may, must } = self.both(one)?;
                Both { may: must.negated(), must: may.negated() }
            }
            What::And(pair) => self.pair(pair, Formula::all)?,
            What::Or(pair) => self.pair(pair, Formula::any)?,
            What::Choice(three) => self.choice(three)?,
            What::Compare(comparison, pair) => match (literal(&pair[0]), literal(&pair[1])) {
                (None, Some(literal)) => self.compare(*comparison, &pair[0], &literal)?,
                (Some(literal), None) => self.compare(comparison.mirrored(), &pair[1], &literal)?,
                _ => return None,
            },
            What::In(one, list) if !list.is_empty() => {
                let equal = |item| self.compare(Comparison::Equal, one, &literal(item)?);
                let items = list.iter().map(equal).collect::<Option<Vec<Both>>>()?;
                let (may, must) = items.into_iter().map(|one| (one.may, one.must)).unzip();
                Both { may: Formula::any(may), must: Formula::any(must) }
            }
            What::Constant(_)
            | What::Operation
            | What::Negative(_)
            | What::In(..)
            | What::Arithmetic(..)
            | What::Call(..) => return None,
        })
    }

    fn has(&self, version: Version) -> bool {
        match version {
            Version::Old => ["update", "delete"].contains(&self.operation),
            Version::New | Version::Each => ["insert", "update"].contains(&self.operation),
        }
    }

    fn pair(&self, pair: &[Node; 2], join: fn(Vec<Formula>) -> Formula) -> Option<Both> {
        let (one, other) = (self.both(&pair[0])?, self.both(&pair[1])?);
        Some(Both { may: join(vec![one.may, other.may]), must: join(vec![one.must, other.must]) })
    }

    /// Only one that the operation decides.
    fn choice(&self, [condition, yes, no]: &[Node; 3]) -> Option<Both> {
        let Both { may, must } = self.both(condition)?;
        match (may, must) {
            (Formula::Always(true), Formula::Always(true)) => self.both(yes),
            (Formula::Always(false), Formula::Always(false)) => self.both(no),
            (Formula::Always(true), Formula::Always(false)) => Some(Both::undecided()),
            _ => None,
        }
    }

    fn compare(&self, comparison: Comparison, one: &Node, literal: &Literal) -> Option<Both> {
        let is_equality = matches!(comparison, Comparison::Equal | Comparison::Different);
        let is_equal = comparison == Comparison::Equal;
        let index = match (&one.what, literal) {
            (What::Operation, Literal::Text(name)) if is_equality => {
                return Some(Both::decided((**name == *self.operation) == is_equal));
            }
            (What::Column(index), _) => *index,
            _ => return None,
        };
        let (version, column) = self.condition.columns.get(index)?;
        if !self.has(*version) {
            return Some(Both::undecided());
        }
        let is_asked = match (literal, (self.type_id)(column)?) {
            (Literal::Null, BOOLEAN | SMALLINT | INTEGER | BIGINT | TEXT | VARCHAR)
            | (Literal::Bool(_), BOOLEAN)
            | (Literal::Text(_), TEXT | VARCHAR) => is_equality,
            (Literal::Int(_), SMALLINT | INTEGER | BIGINT) => true,
            _ => false,
        };
        if !is_asked {
            return None;
        }
        let ask = |null| {
            let (version, column, literal) = (*version, column.clone(), literal.clone());
            Formula::Ask(Ask { version, column, comparison, literal, null })
        };
        // NULL is equal to NULL alone, and has no order.
        let null = is_equal == (*literal == Literal::Null);
        Some(if is_equality {
            Both { may: ask(null), must: ask(null) }
        } else {
            Both { may: ask(true), must: ask(false) }
        })
    }
}

/// `pg_type.oid` of what can be asked. Other types compare otherwise in Postgres than here
/// (`char(n)`, floats), or may not stand in a row filter (enums).
const BOOLEAN: u32 = 16;
const SMALLINT: u32 = 21;
const INTEGER: u32 = 23;
const BIGINT: u32 = 20;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;

fn literal(node: &Node) -> Option<Literal> {
    let is_plain = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    match &node.what {
        What::Constant(Constant::Null) => Some(Literal::Null),
        What::Constant(Constant::Bool(truth)) => Some(Literal::Bool(*truth)),
        What::Constant(Constant::Int(int)) => Some(Literal::Int(*int)),
        What::Constant(Constant::Text(text)) if is_plain(text) => Some(Literal::Text(text.clone())),
        What::Negative(one) => match &one.what {
            What::Constant(Constant::Int(int)) => int.checked_neg().map(Literal::Int),
            _ => None,
        },
        _ => None,
    }
}

impl Both {
    fn decided(truth: bool) -> Both {
        Both { may: Formula::Always(truth), must: Formula::Always(truth) }
    }

    fn undecided() -> Both {
        Both { may: Formula::Always(true), must: Formula::Always(false) }
    }

    /// A column that is a truth value itself: NULL is none.
    fn or_null_undecided(self) -> Both {
        let with = |formula, null| match formula {
            Formula::Ask(ask) => Formula::Ask(Ask { null, ..ask }),
            other => other,
        };
        Both { may: with(self.may, true), must: with(self.must, false) }
    }
}

impl Comparison {
    /// The same with its sides exchanged.
    fn mirrored(self) -> Comparison {
        match self {
            Comparison::Equal | Comparison::Different => self,
            Comparison::Less => Comparison::Greater,
            Comparison::LessOrEqual => Comparison::GreaterOrEqual,
            Comparison::Greater => Comparison::Less,
            Comparison::GreaterOrEqual => Comparison::LessOrEqual,
        }
    }

    fn negated(self) -> Comparison {
        match self {
            Comparison::Equal => Comparison::Different,
            Comparison::Different => Comparison::Equal,
            Comparison::Less => Comparison::GreaterOrEqual,
            Comparison::LessOrEqual => Comparison::Greater,
            Comparison::Greater => Comparison::LessOrEqual,
            Comparison::GreaterOrEqual => Comparison::Less,
        }
    }
}

impl Formula {
    /// True if each part is.
    pub(in crate::keys) fn all(parts: Vec<Formula>) -> Formula {
        joined(parts, true)
    }

    /// True if a part is.
    pub(in crate::keys) fn any(parts: Vec<Formula>) -> Formula {
        joined(parts, false)
    }

    fn negated(self) -> Formula {
        let each = |parts: Vec<Formula>| parts.into_iter().map(Formula::negated).collect();
        match self {
            Formula::Always(truth) => Formula::Always(!truth),
            Formula::Ask(ask) => {
                let (comparison, null) = (ask.comparison.negated(), !ask.null);
                Formula::Ask(Ask { comparison, null, ..ask })
            }
            Formula::All(parts) => Formula::Any(each(parts)),
            Formula::Any(parts) => Formula::All(each(parts)),
        }
    }

    /// Each comparison.
    pub(crate) fn asks(&self) -> Vec<&Ask> {
        match self {
            Formula::Always(_) => Vec::new(),
            Formula::Ask(ask) => vec![ask],
            Formula::All(parts) | Formula::Any(parts) => {
                parts.iter().flat_map(Formula::asks).collect()
            }
        }
    }

    /// The same of whichever version there is.
    pub(in crate::keys) fn of_any_version(&self) -> Formula {
        let each = |parts: &[Formula]| parts.iter().map(Formula::of_any_version).collect();
        match self {
            Formula::Always(truth) => Formula::Always(*truth),
            Formula::Ask(ask) => Formula::Ask(Ask { version: Version::Each, ..ask.clone() }),
            Formula::All(parts) => Formula::all(each(parts)),
            Formula::Any(parts) => Formula::any(each(parts)),
        }
    }

    /// Whether it holds for a row; `value` gives a column's text, `None` for NULL.
    pub(crate) fn holds<'a>(&self, value: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Formula::Always(truth) => *truth,
            Formula::Ask(ask) => ask.holds(value(&ask.column)),
            Formula::All(parts) => parts.iter().all(|part| part.holds(value)),
            Formula::Any(parts) => parts.iter().any(|part| part.holds(value)),
        }
    }
}

/// Joins what is not constant, each once; `neutral` is the constant that changes nothing.
fn joined(parts: Vec<Formula>, neutral: bool) -> Formula {
    let mut flat: Vec<Formula> = Vec::new();
    for part in parts {
        match part {
            Formula::Always(truth) if truth == neutral => {}
            Formula::Always(truth) => return Formula::Always(truth),
            Formula::All(inner) if neutral => flat.extend(inner),
            Formula::Any(inner) if !neutral => flat.extend(inner),
            other => flat.push(other),
        }
    }
    let mut once: Vec<Formula> = Vec::new();
    for part in flat {
        if !once.contains(&part) {
            once.push(part);
        }
    }
    match once.len() {
        0 => Formula::Always(neutral),
        1 => once.swap_remove(0),
        _ if neutral => Formula::All(once),
        _ => Formula::Any(once),
    }
}

impl Ask {
    /// The answer for a column's text, as Postgres or the stream writes it; `None` is NULL.
    pub(crate) fn holds(&self, value: Option<&str>) -> bool {
        let Some(text) = value else { return self.null };
        let order = match &self.literal {
            Literal::Null => return self.comparison == Comparison::Different,
            Literal::Bool(truth) => matches!(text, "t" | "true").cmp(truth),
            Literal::Text(other) => text.as_bytes().cmp(other.as_bytes()),
            Literal::Int(other) => match text.parse::<i64>() {
                Ok(int) => int.cmp(other),
                Err(_) => return true,
            },
        };
        match self.comparison {
            Comparison::Equal => order.is_eq(),
            Comparison::Different => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        }
    }
}
