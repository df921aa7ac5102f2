//! Properties of any condition and any row; the crate's own interpreter is the oracle.

use cel::{Context, Program, Value};
use proptest::prelude::*;

use super::tests::{Cell, NULL, UNKNOWN, compile, evaluate, script, text};
use super::{Condition, Undecided};
use crate::keys::known::Known;

/// Conditions that are typed, over `new.i` (an integer), `new.t` (a text) and `new.b` (a boolean).
fn condition() -> impl Strategy<Value = String> {
    let int = prop_oneof![
        Just("new.i".to_owned()),
        (-3_i64..4).prop_map(|int| int.to_string()),
        Just("9223372036854775807".to_owned()),
    ];
    let int = int.prop_recursive(3, 8, 2, |inner| {
        let operators = prop::sample::select(vec!["+", "-", "*", "/", "%"]);
        (inner.clone(), operators, inner)
            .prop_map(|(one, with, other)| format!("({one} {with} {other})"))
    });
    let text = prop::sample::select(vec!["new.t", "'a'", "'ab'", "''", "'ø'"]);
    let compare = prop::sample::select(vec!["==", "!=", "<", "<=", ">", ">="]);
    let call = prop::sample::select(vec!["startsWith", "endsWith", "contains"]);
    let leaf = prop_oneof![
        prop::sample::select(vec!["new.b", "true", "false"]).prop_map(str::to_owned),
        (int.clone(), compare.clone(), int.clone()).prop_map(|(a, is, b)| format!("{a} {is} {b}")),
        (text.clone(), compare, text.clone()).prop_map(|(a, is, b)| format!("{a} {is} {b}")),
        (text.clone(), call, text.clone()).prop_map(|(a, call, b)| format!("{a}.{call}({b})")),
        (int.clone(), int.clone()).prop_map(|(a, b)| format!("{a} in [1, new.i] && {b} < 9")),
        (text, int).prop_map(|(a, b)| format!("size({a}) == {b}")),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| format!("!({one})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| format!("({a}) ? ({b}) : ({c})")),
        ]
    })
}

/// Texts out of CEL's own tokens, most of which mean nothing.
fn tokens() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "new",
        "old",
        "op",
        ".x",
        ".",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "?",
        ":",
        "==",
        "!=",
        "<",
        "in",
        "&&",
        "||",
        "!",
        "-",
        "+",
        "/",
        "%",
        "1",
        "1u",
        "0x",
        "1.5",
        "1e999",
        "'a'",
        "\"",
        "'''",
        "b'",
        "r'\\",
        "null",
        "true",
        "has(",
        "size(",
        "timestamp(",
        "duration(",
        "all(",
        "`",
        ",",
        " ",
        "\n",
        "//",
        "\\",
        "ø",
        "\u{0}",
        "for",
        "_",
        "@in",
        "$",
    ]);
    prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

fn known(bytes: Option<&[u8]>) -> Known<'_> {
    bytes.map_or(UNKNOWN, |bytes| if bytes.is_empty() { NULL } else { Known::Bytes(bytes) })
}

proptest! {
    #![proptest_config(ProptestConfig {
        // Without optimization the parser takes milliseconds.
        cases: ProptestConfig::default().cases / 2,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_known_row_gives_what_the_language_says(
        source in condition(), int in -3_i64..4, value in "[abø]{0,3}", truth in any::<bool>(),
    ) {
        let row = std::collections::HashMap::from([
            ("i".to_owned(), Value::from(int)),
            ("t".to_owned(), Value::from(value.clone())),
            ("b".to_owned(), Value::from(truth)),
        ]);
        let mut context = Context::default();
        context.add_variable_from_value("new", row);
        let expected = Program::compile(&source).unwrap().execute(&context);
        let digits = int.to_string();
        let columns: [(&str, Cell<'_>); 3] = [
            ("i", (20, text(&digits))),
            ("t", (25, text(&value))),
            ("b", (16, text(if truth { "true" } else { "false" }))),
        ];
        let found = evaluate(&compile(&source), "insert", &[], &columns);
        match expected {
            Ok(Value::Bool(expected)) => prop_assert_eq!(found, Ok(expected), "{}", source),
            _ => prop_assert!(matches!(found, Err(Undecided::Fault(_))), "{} {:?}", source, found),
        }
    }

    /// Whatever the unknown values are: a condition that is decided without them stays as it is.
    #[test]
    fn an_unknown_value_never_decides(
        source in condition(), int in -3_i64..4, value in "[abø]{0,3}", truth in any::<bool>(),
        hidden in any::<[bool; 3]>(),
    ) {
        let digits = int.to_string();
        let truth = text(if truth { "true" } else { "false" });
        let texts = [(20, text(&digits)), (25, text(&value)), (16, truth)];
        let columns = |hidden: [bool; 3]| {
            let cell = |at: usize| (texts[at].0, if hidden[at] { UNKNOWN } else { texts[at].1 });
            [("i", cell(0)), ("t", cell(1)), ("b", cell(2))]
        };
        let condition = compile(&source);
        let whole = evaluate(&condition, "insert", &[], &columns([false; 3]));
        let part = evaluate(&condition, "insert", &[], &columns(hidden));
        let is_open = part == Err(Undecided::Unknown);
        prop_assert!(part == whole || is_open, "{source} {whole:?} {part:?}");
    }

    #[test]
    fn no_value_of_any_type_is_too_much(
        source in condition(), type_id in prop::sample::select(vec![
            16, 17, 18, 20, 21, 23, 25, 26, 700, 701, 1042, 1082, 1114, 1184, 1700, 2950, 70_000,
        ]),
        bytes in prop::option::of(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..12),
            "[-+0-9.: eTZBC]{0,30}".prop_map(String::into_bytes),
            "NaN|-?[Ii]nfinity|-?[0-9]{17,21}".prop_map(String::into_bytes),
            "[0-9]{4,6}-[0-9]{2}-[0-9]{2}( BC)?".prop_map(String::into_bytes),
        ]),
    ) {
        let cell = (type_id, known(bytes.as_deref()));
        let columns = [("i", cell), ("t", cell), ("b", cell)];
        let more = "int(new.i) > 1 || double(new.i) > 1.0 || timestamp(new.t) < timestamp(new.t) \
                    || duration(new.t) > duration('1s') || new.i - new.t == new.b \
                    || -new.i == new.t";
        for source in [source.as_str(), more] {
            let condition = compile(source);
            let once = evaluate(&condition, "insert", &[], &columns);
            prop_assert_eq!(once, evaluate(&condition, "insert", &[], &columns));
        }
    }

    #[test]
    fn no_text_is_too_much(source in prop_oneof![tokens(), ".{0,60}"]) {
        match Condition::parse(&script(&source)) {
            Ok(condition) => prop_assert!(condition.columns.len() <= 40),
            Err(flaws) => prop_assert!(!flaws.is_empty()),
        }
    }
}
