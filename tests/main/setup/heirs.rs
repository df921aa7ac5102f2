//! Tables that inherit from a published one are tables of their own: they are published if a rule
//! names them, and only then.

use crate::support::{Bed, Settings, Sidecar, text};

use super::{PUBLISHED, printed_sql, psql, rule};

/// `heir` has no replica identity: published, it could not be written to.
const TABLES: &str = "
    create table par (id int primary key, a text);
    create table heir () inherits (par);
    create table grand (primary key (id)) inherits (par);
    create table ok (id int primary key, a text);
    insert into par values (1, 'a'); insert into heir values (2, 'b');
    insert into ok values (3, 'c');";

const WRITE: &str = "update par set a = a || 'x'; update heir set a = a || 'y';
                     insert into heir values (9, 'z'); delete from par where id = 9;
                     update ok set a = 'x'";

fn settings(bed: &Bed, tables: &[&str]) -> Settings {
    let rules: String = tables.iter().map(|name| rule(name, &["k:{id}"])).collect();
    Settings::new(&bed.postgres, &bed.redis, &rules)
}

/// The rule of a table with an heir that no rule names is left, and the heir stays unpublished and
/// writable, whoever runs the SQL.
#[tokio::test]
async fn what_inherits_from_a_table_is_not_published_with_it() {
    for by in ["setup", "script", "check"] {
        let bed = Bed::new(&[]).await;
        bed.sql.run(TABLES).await;
        let sidecar = Sidecar::new(settings(&bed, &["ok", "par"]));
        match by {
            "setup" => {
                let output = sidecar.command(&["setup"]);
                assert_eq!(output.status.code(), Some(1), "{}", text(&output));
                assert!(text(&output).contains("inherits from `public.par`"), "{}", text(&output));
            }
            "script" => {
                let output = sidecar.command(&["setup", "--print"]);
                let script = String::from_utf8(output.stdout).unwrap();
                psql(&bed, "postgres", &script);
                let told = script.lines().find(|line| line.starts_with("-- By hand: "));
                let told = told.expect("the rule that is left is named");
                assert!(told.contains("rule.1.table: `public."), "{script}");
                assert!(told.contains("inherits from `public.par`"), "{script}");
            }
            _ => psql(&bed, "postgres", &printed_sql(&super::checked(&sidecar))),
        }
        assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "ok par", "{by}");
        bed.sql.run(WRITE).await;
    }
}

/// Adding a table whose heir is in the publication fails without ONLY, and taking it out takes the
/// heir with it.
#[tokio::test]
async fn a_table_comes_and_goes_without_what_inherits_from_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let mut sidecar = Sidecar::new(settings(&bed, &["ok", "grand"]));
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "grand ok");
    // With a rule for each there is nothing left to complain of.
    bed.sql.run("alter table heir add primary key (id)").await;
    sidecar.change(|new| new.rules = settings(&bed, &["ok", "grand", "heir", "par"]).rules);
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "grand heir ok par");
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
    sidecar.change(|new| new.rules = settings(&bed, &["ok", "grand"]).rules);
    bed.sql.run("alter publication walsweep drop table only heir").await;
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "grand ok", "`par` alone is taken out");
    bed.sql.run(WRITE).await;
}

/// An earlier version published what inherits from a table together with it. That is told, and
/// undone once: whoever puts one in later does so by hand.
#[tokio::test]
async fn what_an_earlier_version_published_with_a_table_is_told_and_taken_out() {
    for (rules, left) in
        [(&["ok", "par"][..], "ok par"), (&["ok", "par", "grand"], "grand ok par"), (&["ok"], "ok")]
    {
        let bed = Bed::new(&[]).await;
        bed.sql.run(TABLES).await;
        bed.sql
            .run(
                "create publication walsweep for table par, ok;
                 comment on publication walsweep is
                   'walsweep setup made this, and walsweep teardown drops it
                    {\"tables\":{\"walsweep\":[[\"public\",\"ok\"],[\"public\",\"par\"]]}}'",
            )
            .await;
        assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "grand heir ok par");
        assert!(bed.sql.client().batch_execute(WRITE).await.is_err(), "it is harm");
        let sidecar = Sidecar::new(settings(&bed, rules));
        let check = super::checked(&sidecar);
        let (_, told) = check.split_once("warning[heir_published]").expect("it is told");
        assert!(told.contains("from `public.par`"), "{check}");
        assert!(told.contains("drop table only \"public\".\"heir\";"), "{check}");
        let said = text(&sidecar.command(&["setup"]));
        assert_eq!(bed.sql.one::<String>(PUBLISHED).await, left, "{said}");
        bed.sql.run(WRITE).await;
        bed.sql.run("alter publication walsweep add table only heir").await;
        let said = text(&sidecar.command(&["setup"]));
        assert!(bed.sql.one::<String>(PUBLISHED).await.contains("heir"), "by hand: {said}");
        let is_told = super::checked(&sidecar).contains("heir_published");
        assert_eq!(is_told, rules.contains(&"par"), "nothing else of `par` is walsweep's");
    }
}

/// A list that somebody made is widened for its table alone.
#[tokio::test]
async fn a_table_is_widened_without_what_inherits_from_it() {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 15 {
        return;
    }
    bed.sql.run(TABLES).await;
    bed.sql.run("create publication walsweep for table only par (id), ok, only grand (id)").await;
    bed.sql.run(crate::data::ADOPT).await;
    let sidecar = Sidecar::new(settings(&bed, &["ok", "par"]));
    let output = sidecar.command(&["setup"]);
    assert_eq!(output.status.code(), Some(1), "`par` has heirs without a rule");
    let columns = "select string_agg(tablename || ' ' || cardinality(attnames), ', '
                                     order by tablename) from pg_publication_tables";
    assert_eq!(bed.sql.one::<String>(columns).await, "grand 1, ok 2, par 2");
    bed.sql.run(WRITE).await;
}
