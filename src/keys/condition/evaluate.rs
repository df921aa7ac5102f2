//! A condition to true, false, or what keeps it from being either.

use super::value::{self, Value};
use super::{Arithmetic, Comparison, Condition, Constant, Function, Kind, Node, What, time};
use crate::keys::known::{Known, Versions};
use crate::keys::template::Version;

/// Why a condition is neither true nor false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keys) enum Undecided {
    /// It depends on a value that is not known.
    Unknown,
    /// The evaluation failed.
    Fault(Fault),
}

/// Why an evaluation failed. It tells nothing of the values (I9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keys) enum Fault {
    /// Two values of kinds that do not go together, or one that does not fit its place.
    Type,
    /// NULL where a value is needed.
    Null,
    /// A value that is not of its column's type, or cannot be converted.
    Malformed,
    /// A result that is too large.
    Overflow,
    /// A division by zero.
    DivisionByZero,
}

impl Fault {
    /// Describes it, for people.
    pub(in crate::keys) fn as_str(self) -> &'static str {
        match self {
            Fault::Type => "values of kinds that do not go together",
            Fault::Null => "NULL where a value is needed; ask for `!= null` first",
            Fault::Malformed => "a value that cannot be read",
            Fault::Overflow => "a number that is too large",
            Fault::DivisionByZero => "a division by zero",
        }
    }
}

/// A change, as a condition sees it.
pub(in crate::keys) struct Sources<'a> {
    pub(in crate::keys) versions: &'a Versions<'a>,
    /// `insert`, `update`, `delete` or `truncate`.
    pub(in crate::keys) operation: &'static str,
    /// For each column of the condition its slot and kind.
    pub(in crate::keys) columns: &'a [(usize, Kind)],
}

type Evaluated<'a> = Result<Value<'a>, Undecided>;

impl Condition {
    /// Evaluates the condition for a change.
    pub(in crate::keys) fn evaluate(&self, sources: &Sources<'_>) -> Result<bool, Undecided> {
        Evaluation { condition: self, sources }.truth(&self.root)
    }
}

struct Evaluation<'a> {
    condition: &'a Condition,
    sources: &'a Sources<'a>,
}

impl<'a> Evaluation<'a> {
    fn truth(&self, node: &'a Node) -> Result<bool, Undecided> {
        match self.value(node)? {
            Value::Bool(truth) => Ok(truth),
            Value::Null => Err(Undecided::Fault(Fault::Null)),
            _ => Err(Undecided::Fault(Fault::Type)),
        }
    }

    fn value(&self, node: &'a Node) -> Evaluated<'a> {
        Ok(match &node.what {
            What::Constant(constant) => match constant {
                Constant::Null => Value::Null,
                Constant::Bool(value) => Value::Bool(*value),
                Constant::Int(value) => Value::Int(*value),
                Constant::Double(value) => Value::Double(*value),
                Constant::Text(value) => Value::Text(value.as_bytes()),
                Constant::Time(value) => Value::Time(*value),
                Constant::Span(value) => Value::Span(*value),
            },
            What::Column(index) => return self.column(*index),
            What::Operation => Value::Text(self.sources.operation.as_bytes()),
            What::Absent(Version::Old) => Value::Bool(!self.sources.versions.has_old),
            What::Absent(_) => Value::Bool(!self.sources.versions.has_new),
            What::Not(one) => Value::Bool(!self.truth(one)?),
            What::Negative(one) => negative(self.value(one)?).map_err(Undecided::Fault)?,
            What::And(pair) => Value::Bool(self.either(pair, false)?),
            What::Or(pair) => Value::Bool(self.either(pair, true)?),
            What::Choice(three) => return self.choice(three),
            What::Compare(comparison, pair) => {
                let (one, other) = (self.value(&pair[0])?, self.value(&pair[1])?);
                Value::Bool(compare(*comparison, one, other).map_err(Undecided::Fault)?)
            }
            What::In(one, list) => Value::Bool(self.contains(one, list)?),
            What::Arithmetic(arithmetic, pair) => {
                let (one, other) = (self.value(&pair[0])?, self.value(&pair[1])?);
                compute(*arithmetic, one, other).map_err(Undecided::Fault)?
            }
            What::Call(function, arguments) => {
                let argument = |at: usize| match arguments.get(at) {
                    Some(node) => self.value(node),
                    None => Ok(Value::Null),
                };
                call(*function, argument(0)?, argument(1)?).map_err(Undecided::Fault)?
            }
        })
    }

    fn column(&self, index: usize) -> Evaluated<'a> {
        let (version, (slot, kind)) =
            (self.condition.columns[index].0, self.sources.columns[index]);
        let versions = self.sources.versions;
        let (has, values) = match version {
            Version::Old => (versions.has_old, &versions.old),
            Version::New | Version::Each => (versions.has_new, &versions.new),
        };
        // A version that does not exist has nothing that could be known: a DELETE must not pass
        // by a condition that asks for the new row only.
        match values.get(slot) {
            Some(Known::Null) if has => Ok(Value::Null),
            Some(Known::Bytes(text)) if has => value::read(kind, text).map_err(Undecided::Fault),
            _ => Err(Undecided::Unknown),
        }
    }

    /// `decisive` decides, on whichever side it stands. Otherwise what is unknown comes before what
    /// failed: it could have been decisive.
    fn either(&self, pair: &'a [Node; 2], decisive: bool) -> Result<bool, Undecided> {
        let one = self.truth(&pair[0]);
        if one == Ok(decisive) {
            return Ok(decisive);
        }
        let other = self.truth(&pair[1]);
        match (one, other) {
            (_, Ok(truth)) if truth == decisive => Ok(decisive),
            (Err(Undecided::Fault(_)), Err(Undecided::Unknown)) => Err(Undecided::Unknown),
            (Err(why), _) | (_, Err(why)) => Err(why),
            (Ok(_), Ok(_)) => Ok(!decisive),
        }
    }

    fn choice(&self, [condition, yes, no]: &'a [Node; 3]) -> Evaluated<'a> {
        if self.truth(condition)? { self.value(yes) } else { self.value(no) }
    }

    /// Like `||` over the items.
    fn contains(&self, one: &'a Node, list: &'a [Node]) -> Result<bool, Undecided> {
        let one = self.value(one)?;
        let mut undecided = None;
        for item in list {
            let same =
                self.value(item).and_then(|item| value::equal(one, item).map_err(Undecided::Fault));
            match same {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(Undecided::Unknown) => undecided = Some(Undecided::Unknown),
                Err(fault) => undecided = undecided.or(Some(fault)),
            }
        }
        undecided.map_or(Ok(false), Err)
    }
}

fn compare(comparison: Comparison, one: Value<'_>, other: Value<'_>) -> Result<bool, Fault> {
    let order = || value::compare(one, other);
    Ok(match comparison {
        Comparison::Equal => value::equal(one, other)?,
        Comparison::Different => !value::equal(one, other)?,
        Comparison::Less => order()?.is_lt(),
        Comparison::LessOrEqual => order()?.is_le(),
        Comparison::Greater => order()?.is_gt(),
        Comparison::GreaterOrEqual => order()?.is_ge(),
    })
}

fn negative(one: Value<'_>) -> Result<Value<'_>, Fault> {
    match one {
        Value::Int(one) => one.checked_neg().map(Value::Int).ok_or(Fault::Overflow),
        Value::Double(one) => Ok(Value::Double(-one)),
        Value::Span(one) => one.checked_neg().map(Value::Span).ok_or(Fault::Overflow),
        Value::Null => Err(Fault::Null),
        _ => Err(Fault::Type),
    }
}

fn compute<'a>(with: Arithmetic, one: Value<'a>, other: Value<'a>) -> Result<Value<'a>, Fault> {
    let sum = |one: i64, other: i64| match with {
        Arithmetic::Add => one.checked_add(other).ok_or(Fault::Overflow),
        Arithmetic::Subtract => one.checked_sub(other).ok_or(Fault::Overflow),
        Arithmetic::Multiply | Arithmetic::Divide | Arithmetic::Remainder => Err(Fault::Type),
    };
    let is_endless = |time: i64| time.unsigned_abs() >= time::INFINITY.unsigned_abs();
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => integers(with, one, other).map(Value::Int),
        (Value::Double(one), Value::Double(other)) => Ok(Value::Double(match with {
            Arithmetic::Add => one + other,
            Arithmetic::Subtract => one - other,
            Arithmetic::Multiply => one * other,
            Arithmetic::Divide => one / other,
            Arithmetic::Remainder => return Err(Fault::Type),
        })),
        (Value::Time(one), Value::Time(other)) if with == Arithmetic::Subtract => {
            if is_endless(one) || is_endless(other) {
                return Err(Fault::Overflow);
            }
            sum(one, other).map(Value::Span)
        }
        (Value::Time(time), Value::Span(span)) => {
            if is_endless(time) {
                Ok(one)
            } else {
                sum(time, span).map(Value::Time)
            }
        }
        (Value::Span(one), Value::Span(other)) => sum(one, other).map(Value::Span),
        (Value::Span(span), Value::Time(time)) if with == Arithmetic::Add => {
            if is_endless(time) {
                Ok(other)
            } else {
                sum(time, span).map(Value::Time)
            }
        }
        (Value::Null, _) | (_, Value::Null) => Err(Fault::Null),
        _ => Err(Fault::Type),
    }
}

fn integers(with: Arithmetic, one: i64, other: i64) -> Result<i64, Fault> {
    let result = match with {
        Arithmetic::Add => one.checked_add(other),
        Arithmetic::Subtract => one.checked_sub(other),
        Arithmetic::Multiply => one.checked_mul(other),
        Arithmetic::Divide | Arithmetic::Remainder if other == 0 => {
            return Err(Fault::DivisionByZero);
        }
        Arithmetic::Divide => one.checked_div(other),
        Arithmetic::Remainder => one.checked_rem(other),
    };
    result.ok_or(Fault::Overflow)
}

fn call<'a>(function: Function, one: Value<'a>, other: Value<'a>) -> Result<Value<'a>, Fault> {
    let texts = || match (one, other) {
        (Value::Text(one) | Value::Label(one), Value::Text(other) | Value::Label(other)) => {
            Ok((one, other))
        }
        (Value::Null, _) | (_, Value::Null) => Err(Fault::Null),
        _ => Err(Fault::Type),
    };
    let text = || match one {
        Value::Text(text) | Value::Label(text) | Value::Decimal(text) => {
            std::str::from_utf8(text).map_err(|_not_text| Fault::Malformed)
        }
        Value::Null => Err(Fault::Null),
        _ => Err(Fault::Type),
    };
    match (function, one) {
        (Function::Size, _) => {
            let count = text()?.chars().count();
            i64::try_from(count).map(Value::Int).map_err(|_huge| Fault::Overflow)
        }
        (Function::StartsWith, _) => texts().map(|(one, part)| Value::Bool(one.starts_with(part))),
        (Function::EndsWith, _) => texts().map(|(one, part)| Value::Bool(one.ends_with(part))),
        (Function::Contains, _) => {
            texts().map(|(one, part)| Value::Bool(memchr::memmem::find(one, part).is_some()))
        }
        (Function::Int, Value::Int(_))
        | (Function::Double, Value::Double(_))
        | (Function::Timestamp, Value::Time(_))
        | (Function::Duration, Value::Span(_)) => Ok(one),
        (Function::Int, Value::Double(double)) => whole(double).ok_or(Fault::Overflow),
        (Function::Int, Value::Decimal(_)) => {
            let text = text()?;
            let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
            whole.parse().map(Value::Int).map_err(|_not_one| Fault::Malformed)
        }
        (Function::Int, Value::Time(time)) => Ok(Value::Int(time.div_euclid(1_000_000))),
        (Function::Int, _) => text()?.parse().map(Value::Int).map_err(|_not_one| Fault::Malformed),
        (Function::Double, Value::Int(int)) => Ok(Value::Double(nearest(int))),
        (Function::Double, _) => {
            text()?.parse().map(Value::Double).map_err(|_not_one| Fault::Malformed)
        }
        (Function::Timestamp, _) => {
            time::rfc3339(text()?.as_bytes()).map(Value::Time).ok_or(Fault::Malformed)
        }
        (Function::Duration, _) => {
            time::span(text()?.as_bytes()).map(Value::Span).ok_or(Fault::Malformed)
        }
    }
}

/// Towards zero, as CEL does it.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn whole<'a>(double: f64) -> Option<Value<'a>> {
    let is_in_range = double.abs() < 9_223_372_036_854_775_808.0;
    is_in_range.then_some(Value::Int(double as i64))
}

#[expect(clippy::cast_precision_loss, reason = "CEL gives the nearest double")]
fn nearest(int: i64) -> f64 {
    int as f64
}
