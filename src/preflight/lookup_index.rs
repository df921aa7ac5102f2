//! Lookups that no index serves: each row that a key needs costs a read of a whole table.
//!
//! The plan is asked for with every way around reading whole tables preferred, and not for certain
//! values: what is read whole all the same has no index that could be used. Reading a whole index,
//! in search of a column that is not its first, is no better.

use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::lookups::begin;
use super::{Code, Error, Finding, lookups};
use crate::keys::{Lookup, LookupId, Rules};
use crate::postgres::statement::{identifier, render};
use crate::postgres::{AS_ROLE, again};

/// The size in bytes of a table from which on reading it whole is worth a word.
const LARGE: i64 = 1 << 20;

/// The name of the statement on the server.
const NAME: &str = "walsweep_lookup_plan";

/// One scan of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Scan {
    schema: String,
    table: String,
    alias: String,
    index: Option<String>,
    condition: String,
}

/// Says for which lookups an index is missing.
///
/// # Errors
///
/// When the connection fails; where the server refuses there is nothing to say.
pub(super) async fn check(rules: &Rules, client: &Client) -> Result<Vec<Finding>, Error> {
    let (mut findings, mut was_locked) = (Vec::new(), false);
    for (id, lookup) in (0..=u16::MAX).map(LookupId).zip(rules.lookups()) {
        client.batch_execute(&begin("read only", was_locked)).await?;
        let mut is_made = false;
        let outcome = one(lookup, client, &mut is_made).await;
        client.batch_execute("rollback").await?;
        was_locked |= outcome.as_ref().is_err_and(lookups::is_locked);
        // No transaction takes it back. The server logs an error for one that is not there.
        if is_made
            && let Err(error) = client.batch_execute(&format!("deallocate {NAME}")).await
            && error.as_db_error().is_none()
        {
            return Err(error.into());
        }
        match outcome {
            Ok(finding) => {
                findings.extend(finding.map(|one| one.of_rules(rules.rules_of_lookup(id))));
            }
            Err(error) if error.as_db_error().is_some() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(findings)
}

/// Finds what to say of one lookup, and whether its plan `is_made` on the server.
async fn one(
    lookup: &Lookup,
    client: &Client,
    is_made: &mut bool,
) -> Result<Option<Finding>, tokio_postgres::Error> {
    client.batch_execute(AS_ROLE).await?;
    let params = client.prepare(lookup.query()).await?.params().len();
    let values = [("name", NAME), ("query", lookup.query())];
    client.batch_execute(&render(include_str!("../../sql/lookup_plan.sql"), &values)).await?;
    *is_made = true;
    let arguments = vec!["null"; params].join(", ");
    let arguments = if params == 0 { arguments } else { format!("({arguments})") };
    let explain = format!("explain (format json, verbose, costs off) execute {NAME} {arguments}");
    let answer = client.simple_query(&explain).await?;
    client.batch_execute(&again()).await?;
    let plan = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => serde_json::from_str::<Value>(row.get(0)?).ok(),
        _ => None,
    });
    let (mut scans, mut conditions) = (Vec::new(), Vec::new());
    if let Some(root) = plan.as_ref().and_then(|plan| plan.get(0)?.get("Plan")) {
        walk(root, None, &mut scans, &mut conditions);
    }
    let conditions = conditions.join("\n");
    for scan in scans {
        if let Some(finding) = judge(lookup, &scan, &conditions, client).await? {
            return Ok(Some(finding));
        }
    }
    Ok(None)
}

/// Collects the scans of tables and all conditions below a node; `heap` is the table that the
/// indexes of a bitmap are of.
fn walk(node: &Value, heap: Option<&Scan>, scans: &mut Vec<Scan>, conditions: &mut Vec<String>) {
    let text = |key: &str| node.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let filters = ["Filter", "Index Cond", "Hash Cond", "Merge Cond", "Join Filter"];
    conditions.extend(filters.map(text).into_iter().filter(|text| !text.is_empty()));
    let own = Scan {
        schema: text("Schema"),
        table: text("Relation Name"),
        alias: text("Alias"),
        index: node.get("Index Name").and_then(Value::as_str).map(str::to_owned),
        condition: text("Index Cond"),
    };
    let mut below = heap;
    match text("Node Type").as_str() {
        "Seq Scan" | "Index Scan" | "Index Only Scan" => scans.push(own),
        "Bitmap Index Scan" => scans.extend(heap.map(|heap| Scan {
            index: own.index,
            condition: own.condition,
            ..heap.clone()
        })),
        "Bitmap Heap Scan" => below = Some(&own),
        _ => {}
    }
    let plans = node.get("Plans").and_then(Value::as_array).into_iter().flatten();
    plans.for_each(|plan| walk(plan, below, scans, conditions));
}

async fn judge(
    lookup: &Lookup,
    scan: &Scan,
    conditions: &str,
    client: &Client,
) -> Result<Option<Finding>, tokio_postgres::Error> {
    let Scan { schema, table, alias, index, condition } = scan;
    let query = include_str!("../../sql/lookup_index.sql");
    let found =
        client.query_opt(query, &[schema, table, alias, index, condition, &conditions]).await?;
    let Some(row) = found else { return Ok(None) };
    let (size, schema, table): (i64, String, String) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let (is_partitioned, is_served): (bool, bool) = (row.try_get(3)?, row.try_get(4)?);
    if is_served || size < LARGE {
        return Ok(None);
    }
    let column: Option<String> = row.try_get(5)?;
    let (name, size) = (&lookup.name, size >> 20);
    let text = format!(
        "lookup `{name}` reads all of `{schema}.{table}` ({size} MB) each time: no index serves it"
    );
    let finding = Finding::warning(Code::LookupIndex, text).at(&lookup.sql.at);
    Ok(Some(match column {
        None => finding.hint("see what `explain` says of it with `enable_seqscan = off`"),
        Some(column) if is_partitioned => finding.hint(format!(
            "create an index on `{column}` of each partition with `concurrently`, and then one on \
             the table"
        )),
        Some(column) => {
            let table = format!("{}.{}", identifier(&schema), identifier(&table));
            let values = [("table", &*table), ("column", &*column)];
            // No step of setup: it may take hours, and nothing stands still without it.
            let sql = Some(render(include_str!("../../sql/lookup_index_cure.sql"), &values));
            let hint = "until then its keys go late, or after 3 s with `*` for what it gives";
            Finding { sql, ..finding.hint(hint) }
        }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Scan, walk};

    #[test]
    fn scans_are_found_wherever_they_stand() {
        let condition = "(p.id = t.product_id)";
        let plan = json!({ "Node Type": "Hash Join", "Hash Cond": condition, "Plans": [
            { "Node Type": "Seq Scan", "Schema": "s", "Relation Name": "p", "Alias": "p" },
            { "Node Type": "Hash", "Plans": [
                { "Node Type": "Bitmap Heap Scan", "Schema": "s", "Relation Name": "tags",
                  "Alias": "t", "Plans": [
                    { "Node Type": "Bitmap Index Scan", "Index Name": "i",
                      "Index Cond": "(t.tag_id = $1)" } ] } ] } ] });
        let (mut scans, mut conditions) = (Vec::new(), Vec::new());
        walk(&plan, None, &mut scans, &mut conditions);
        let scan = |table: &str, alias: &str, index: Option<&str>, condition: &str| Scan {
            schema: "s".to_owned(),
            table: table.to_owned(),
            alias: alias.to_owned(),
            index: index.map(str::to_owned),
            condition: condition.to_owned(),
        };
        assert_eq!(
            scans,
            [scan("p", "p", None, ""), scan("tags", "t", Some("i"), "(t.tag_id = $1)")]
        );
        assert_eq!(conditions, ["(p.id = t.product_id)", "(t.tag_id = $1)"]);
    }
}
