//! Tables that change while the stream runs: columns, names, identities, membership.

use crate::support::{Bed, PATIENCE, Sidecar, eventually};

use super::{expect, rule, sidecar};

const TABLE: &str = "create table site (id int primary key, name text, note text);
                     alter table site replica identity full;
                     insert into site values (1, 'a', 'n'), (2, 'b', 'n'), (3, 'c', 'n');";

/// Keys of `site`, and one that no rule knows.
const KEYS: [&str; 3] = ["site:1", "site:2", "other"];

fn rules() -> String {
    rule("public.site", &["site:{id}", "name:{name}"])
}

async fn not_ready(sidecar: &Sidecar) {
    let what = "it is no longer ready";
    eventually(PATIENCE, what, || async { sidecar.readyz().await == Some(503) }).await;
}

async fn ready(sidecar: &Sidecar) {
    let what = "it is ready again";
    eventually(PATIENCE, what, || async { sidecar.readyz().await == Some(200) }).await;
}

/// Every way in which a table of the rules has no changes any more: it is told, and not ready;
/// once it has them again, everything is swept.
#[tokio::test]
async fn a_table_that_has_no_changes_any_more_is_not_silent() {
    let bed = Bed::new(&[]).await;
    let sidecar = sidecar(&bed, TABLE, &rules()).await;
    for (broken, told, cured) in [
        (
            "alter publication walsweep drop table site",
            "is not in publication `walsweep`",
            "alter publication walsweep add table site",
        ),
        (
            "alter table site rename to site2",
            "there is no table `public.site`",
            "alter table site2 rename to site",
        ),
        (
            "create schema away; alter table site set schema away",
            "there is no table `public.site`",
            "alter table away.site set schema public",
        ),
        (
            "drop table site",
            "there is no table `public.site`",
            "create table site (id int primary key, name text, note text);
             alter table site replica identity full; alter publication walsweep add table site",
        ),
        (
            "alter publication walsweep set (publish = 'insert')",
            "which publication `walsweep` leaves out",
            "alter publication walsweep set (publish = 'insert, update, delete, truncate')",
        ),
        (
            "create table heir () inherits (site)",
            "`public.heir` inherits from `public.site`",
            "drop table heir",
        ),
    ] {
        bed.fill(&KEYS).await;
        bed.sql.run(broken).await;
        not_ready(&sidecar).await;
        sidecar.wait_log(told).await;
        bed.sql.run(cured).await;
        ready(&sidecar).await;
        assert!(!bed.has("site:1").await, "{broken}");
        assert!(bed.has("other").await, "{broken}");
        let upsert = "insert into site values (1, 'z') on conflict (id) do update set name = 'y'";
        expect(&bed, upsert, &["site:1"], &["site:2", "other"]).await;
    }
}

/// A table that is altered may read otherwise, though no row of it is sent.
#[tokio::test]
async fn an_altered_table_goes_on_by_its_new_columns_after_a_sweep() {
    let bed = Bed::new(&[]).await;
    let sidecar = sidecar(&bed, TABLE, &rules()).await;
    let sweeps = "walsweep_resyncs_total{reason=\"tables_changed\"}";
    // A column that no rule reads, and that nobody can have read before.
    let add = "alter table site add column extra text default 'x'";
    bed.fill(&KEYS).await;
    let update = "update site set name = 'z' where id = 1";
    expect(&bed, &format!("{add}; {update}"), &["site:1", "name:z"], &["site:2", "other"]).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(bed.has("site:2").await, "{add}");
    for (count, alter) in [
        (1.0, "alter table site alter column note type int using length(note)"),
        (2.0, "alter table site drop column note"),
        (3.0, "alter table site rename column extra to other"),
        (4.0, "alter table site alter column id type bigint"),
    ] {
        bed.fill(&KEYS).await;
        let update = "update site set name = 'z' where id = 1";
        expect(&bed, &format!("{alter}; {update}"), &["site:1", "name:z"], &["other"]).await;
        let swept = || async { sidecar.metric(sweeps).await == count };
        eventually(PATIENCE, alter, swept).await;
        bed.gone("site:2").await;
        assert!(bed.has("other").await, "{alter}");
    }
    ready(&sidecar).await;
    // A column of a key that is renamed: its values are unknown until somebody looks.
    let rename = "alter table site rename column name to title";
    expect(&bed, &format!("{rename}; delete from site where id = 2"), &["name:b"], &["other"])
        .await;
    not_ready(&sidecar).await;
    sidecar.wait_log("has no column `name`").await;
    bed.sql.run("alter table site rename column title to name").await;
    ready(&sidecar).await;
    let expected = ["watermark_missing", "tables_changed", "session", "suspended", "20:9", "21:9"];
    sidecar.assert_quiet(&expected);
}

/// The watermark knows what the tables were like: what is altered while nobody looks is swept at
/// the next start, and nothing is without it.
#[tokio::test]
async fn a_table_that_is_altered_while_walsweep_is_down_is_swept_at_the_start() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = sidecar(&bed, TABLE, &rules()).await;
    bed.settled().await;
    for (alter, sweeps) in [
        ("select 1", 0.0),
        ("alter table site add column extra text default 'x'", 0.0),
        ("alter table site rename to away; alter table away rename to site", 1.0),
    ] {
        assert_eq!(sidecar.sigterm().await, 0);
        bed.fill(&KEYS).await;
        bed.sql.run(alter).await;
        sidecar.start();
        sidecar.wait_ready().await;
        bed.settled().await;
        assert_eq!(sidecar.metric_sum("walsweep_resyncs_total").await, sweeps, "{alter}");
        let reason = "walsweep_resyncs_total{reason=\"tables_changed\"}";
        assert_eq!(sidecar.metric(reason).await, sweeps, "{alter}");
        for key in KEYS {
            let stays = key == "other" || sweeps == 0.0;
            assert_eq!(bed.has(key).await, stays, "{key} after {alter}");
        }
    }
}
