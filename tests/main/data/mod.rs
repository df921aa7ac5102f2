//! Every kind of table, value and change of a table: real keys go in a real Redis, others stay.

mod names;
mod narrow;
mod partitions;
mod readings;
mod shapes;
mod suspended;
pub(crate) mod types;
mod values;

use crate::support::{Bed, Settings, Sidecar, text};

/// Says of a publication that it is walsweep's.
pub(crate) const ADOPT: &str = "comment on publication walsweep is
                                'walsweep setup made this, and walsweep teardown drops it'";

/// A sidecar with these rules, over a bed with the tables of `ddl`, set up by walsweep itself.
async fn sidecar(bed: &Bed, ddl: &str, rules: &str) -> Sidecar {
    bed.sql.run(ddl).await;
    Sidecar::set_up(Settings::new(&bed.postgres, &bed.redis, rules)).await
}

/// A rule without anything unusual, with the letters of the table's name for its own.
fn rule(table: &str, keys: &[&str]) -> String {
    let name: String = table.chars().filter(char::is_ascii_lowercase).take(40).collect();
    format!("[[rule]]\nname = {name:?}\ntable = {table:?}\nkeys = {keys:?}\n")
}

/// Puts keys into Redis, runs the statements, waits until all of it is confirmed, and holds what is
/// left against what is expected.
async fn expect(bed: &Bed, statements: &str, gone: &[&str], stay: &[&str]) {
    bed.fill(gone).await;
    bed.fill(stay).await;
    bed.sql.run(statements).await;
    bed.settled().await;
    for key in gone {
        assert!(!bed.has(key).await, "`{key}` is there after {statements}");
    }
    for key in stay {
        assert!(bed.has(key).await, "`{key}` is gone after {statements}");
    }
}

/// The output of `walsweep check`, which must find no error.
fn checked(sidecar: &Sidecar) -> String {
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}
