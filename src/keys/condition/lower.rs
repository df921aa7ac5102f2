//! The tree of the crate `cel` to the one that is evaluated: names to columns, calls to functions.

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue, SelectExpr, operators};

use super::parse::Parsed;
use super::{Arithmetic, Comparison, Constant, Flaws, Function, Node, What, time};
use crate::keys::filter::Flaw;
use crate::keys::template::Version;

/// How deep the tree may be: `a + b + c` is one level deeper for each of its operators.
const DEPTH_MAX: usize = 200;

const NAMES: &str = "the names are `old`, `new` and `op`, such as `old.status != new.status`";
const FUNCTIONS: &str = "the functions are `size`, `startsWith`, `endsWith`, `contains`, `int`, \
                         `double`, `timestamp` and `duration`";

/// Gives the tree, the columns that it reads, and every name and call that is none; in the tree a
/// value of any kind stands in the place of one.
pub(super) fn lower(parsed: &Parsed) -> (Node, Vec<(Version, String)>, Flaws) {
    let mut lowering = Lowering { parsed, columns: Vec::new(), flaws: Vec::new(), depth: 0 };
    let root = lowering.node(&parsed.root);
    (root, lowering.columns, lowering.flaws)
}

struct Lowering<'a> {
    parsed: &'a Parsed,
    columns: Vec<(Version, String)>,
    flaws: Flaws,
    depth: usize,
}

impl Lowering<'_> {
    fn node(&mut self, expr: &IdedExpr) -> Node {
        let at = self.place(expr);
        self.depth += 1;
        let what = if self.depth > DEPTH_MAX {
            self.flaw(at, "the condition is nested too deeply", "say it in several rules")
        } else {
            self.what(expr, at)
        };
        self.depth -= 1;
        Node { at, what }
    }

    /// Where the part begins, in bytes. The parser gives a selection and an operator the place of
    /// its sign.
    fn place(&self, expr: &IdedExpr) -> usize {
        if let Expr::Select(SelectExpr { operand, .. }) = &expr.expr {
            return self.place(operand);
        }
        self.parsed.places.offset_for(expr.id).map_or(0, |(start, _)| start as usize)
    }

    fn flaw(&mut self, at: usize, message: impl Into<String>, hint: &str) -> What {
        self.flaws.push((at, Flaw::new(message, hint)));
        What::Column(usize::MAX)
    }

    fn what(&mut self, expr: &IdedExpr, at: usize) -> What {
        match &expr.expr {
            Expr::Literal(literal) => self.literal(literal, at),
            Expr::Ident(name) => match (name.as_str(), version(expr)) {
                ("op", _) => What::Operation,
                (name, Some(_)) => {
                    let hint = format!("name a column of it, or write `{name} == null`");
                    self.flaw(at, format!("`{name}` is a row, not a value"), &hint)
                }
                (name, None) => self.flaw(at, format!("unknown name `{name}`"), NAMES),
            },
            Expr::Select(select) if select.test => {
                let hint = "write `new.x != null` or `new != null`";
                self.flaw(at, "`has` is not supported: every row has every column", hint)
            }
            Expr::Select(select) => self.select(&select.operand, &select.field, at),
            Expr::Call(call) => self.call(call, at),
            Expr::List(_) => {
                let hint = "a list stands behind `in` only: `new.status in ['scored', 'void']`";
                self.flaw(at, "a list is not a value here", hint)
            }
            Expr::Comprehension(_) => {
                self.flaw(at, "`all`, `exists`, `map` and `filter` are not supported", FUNCTIONS)
            }
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                self.flaw(at, "a map or message is not supported", FUNCTIONS)
            }
        }
    }

    fn literal(&mut self, literal: &LiteralValue, at: usize) -> What {
        What::Constant(match literal {
            LiteralValue::Null => Constant::Null,
            LiteralValue::Boolean(value) => Constant::Bool(*value.inner()),
            LiteralValue::Int(value) => Constant::Int(*value.inner()),
            LiteralValue::UInt(value) => match i64::try_from(*value.inner()) {
                Ok(value) => Constant::Int(value),
                Err(_) => return self.flaw(at, "the number is too large", "bigint ends at 2^63"),
            },
            LiteralValue::Double(value) => Constant::Double(*value.inner()),
            LiteralValue::String(value) => Constant::Text(value.inner().into()),
            LiteralValue::Bytes(_) => {
                let hint = "a bytea is compared as the text that psql shows: '\\\\x00ff'";
                return self.flaw(at, "bytes are not supported", hint);
            }
        })
    }

    fn select(&mut self, operand: &IdedExpr, column: &str, at: usize) -> What {
        let Some(version) = version(operand) else {
            return match &operand.expr {
                Expr::Ident(name) if name != "op" => {
                    let message = format!("unknown name `{name}` in `{name}.{column}`");
                    self.flaw(at, message, NAMES)
                }
                _ => {
                    let hint = "a jsonb or composite value is compared as the text psql shows";
                    self.flaw(at, format!("`.{column}` selects from what is no row"), hint)
                }
            };
        };
        let wanted = (version, column);
        let known = self.columns.iter().position(|(v, name)| (*v, name.as_str()) == wanted);
        What::Column(known.unwrap_or_else(|| {
            self.columns.push((version, column.to_owned()));
            self.columns.len() - 1
        }))
    }

    fn call(&mut self, call: &CallExpr, at: usize) -> What {
        let CallExpr { func_name, target, args } = call;
        match (func_name.as_str(), target.as_deref(), args.as_slice()) {
            (operators::INDEX, None, [row, name]) => match &name.expr {
                Expr::Literal(LiteralValue::String(name)) => self.select(row, name.inner(), at),
                _ => self.flaw(at, "only a row's column stands in `[…]`", "write `new[\"x\"]`"),
            },
            (operators::LOGICAL_NOT, None, [one]) => What::Not(Box::new(self.node(one))),
            (operators::NEGATE, None, [one]) => What::Negative(Box::new(self.node(one))),
            (operators::LOGICAL_AND, None, [one, other]) => What::And(self.pair(one, other)),
            (operators::LOGICAL_OR, None, [one, other]) => What::Or(self.pair(one, other)),
            (operators::CONDITIONAL, None, [condition, yes, no]) => {
                let nodes = [self.node(condition), self.node(yes), self.node(no)];
                What::Choice(Box::new(nodes))
            }
            (operators::IN, None, [one, list]) => match &list.expr {
                Expr::List(list) => {
                    let one = Box::new(self.node(one));
                    What::In(one, list.elements.iter().map(|item| self.node(item)).collect())
                }
                _ => self.flaw(at, "what stands behind `in` is no list", "write `in ['a', 'b']`"),
            },
            (name, None, [one, other]) if comparison(name).is_some() => {
                let comparison = comparison(name).unwrap_or(Comparison::Equal);
                self.comparison(comparison, one, other)
            }
            (name, None, [one, other]) if arithmetic(name).is_some() => {
                let arithmetic = arithmetic(name).unwrap_or(Arithmetic::Add);
                What::Arithmetic(arithmetic, self.pair(one, other))
            }
            (name, target, args) => self.function(name, target, args, at),
        }
    }

    fn pair(&mut self, one: &IdedExpr, other: &IdedExpr) -> Box<[Node; 2]> {
        Box::new([self.node(one), self.node(other)])
    }

    fn comparison(&mut self, comparison: Comparison, one: &IdedExpr, other: &IdedExpr) -> What {
        let is_null = |expr: &IdedExpr| expr.expr == Expr::Literal(LiteralValue::Null);
        let row = match (version(one), version(other)) {
            (Some(row), None) if is_null(other) => Some(row),
            (None, Some(row)) if is_null(one) => Some(row),
            _ => None,
        };
        match (row, comparison) {
            (Some(row), Comparison::Equal) => What::Absent(row),
            (Some(row), Comparison::Different) => {
                let at = self.place(one);
                What::Not(Box::new(Node { at, what: What::Absent(row) }))
            }
            _ => What::Compare(comparison, self.pair(one, other)),
        }
    }

    fn function(
        &mut self,
        name: &str,
        target: Option<&IdedExpr>,
        args: &[IdedExpr],
        at: usize,
    ) -> What {
        let all: Vec<&IdedExpr> = target.into_iter().chain(args).collect();
        let (function, count) = match (name, target.is_some()) {
            ("size", _) => (Function::Size, 1),
            ("startsWith", true) => (Function::StartsWith, 2),
            ("endsWith", true) => (Function::EndsWith, 2),
            ("contains", true) => (Function::Contains, 2),
            ("int", false) => (Function::Int, 1),
            ("double", false) => (Function::Double, 1),
            ("timestamp", false) => (Function::Timestamp, 1),
            ("duration", false) => (Function::Duration, 1),
            _ => return self.flaw(at, format!("unknown function `{name}`"), FUNCTIONS),
        };
        if all.len() != count {
            let hint = "write `size(x)`, `x.startsWith('y')` or `timestamp('…')`";
            return self.flaw(at, format!("`{name}` has a wrong number of arguments"), hint);
        }
        let nodes: Vec<Node> = all.into_iter().map(|arg| self.node(arg)).collect();
        let is_read_here = matches!(function, Function::Timestamp | Function::Duration);
        let first = nodes.first().filter(|_| is_read_here).map(|node| &node.what);
        let Some(What::Constant(Constant::Text(text))) = first else {
            return What::Call(function, nodes);
        };
        // Read once, here: what is none of its kind is known at the start.
        let (read, hint) = match function {
            Function::Timestamp => {
                (time::rfc3339(text.as_bytes()).map(Constant::Time), "2026-07-19T18:00:00Z")
            }
            _ => (time::span(text.as_bytes()).map(Constant::Span), "1h30m"),
        };
        let message = format!("`{text}` is no {name}");
        match read {
            Some(constant) => What::Constant(constant),
            None => self.flaw(at, message, &format!("write it as `{name}('{hint}')`")),
        }
    }
}

fn version(expr: &IdedExpr) -> Option<Version> {
    match &expr.expr {
        Expr::Ident(name) if name == "old" => Some(Version::Old),
        Expr::Ident(name) if name == "new" => Some(Version::New),
        _ => None,
    }
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        operators::EQUALS => Comparison::Equal,
        operators::NOT_EQUALS => Comparison::Different,
        operators::LESS => Comparison::Less,
        operators::LESS_EQUALS => Comparison::LessOrEqual,
        operators::GREATER => Comparison::Greater,
        operators::GREATER_EQUALS => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

fn arithmetic(name: &str) -> Option<Arithmetic> {
    Some(match name {
        operators::ADD => Arithmetic::Add,
        operators::SUBSTRACT => Arithmetic::Subtract,
        operators::MULTIPLY => Arithmetic::Multiply,
        operators::DIVIDE => Arithmetic::Divide,
        operators::MODULO => Arithmetic::Remainder,
        _ => return None,
    })
}
