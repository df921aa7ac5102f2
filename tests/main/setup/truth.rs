//! Findings say what is so, and of `run` they say what `run` does.

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

use super::rule;

/// A partition that is added without a key, as jobs do: the application cannot write to its rows,
/// and that is what is said; the rule goes on.
#[tokio::test]
async fn a_partition_without_identity_is_told_as_what_fails_in_the_application() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table event (id int not null, day int not null) partition by list (day);
             alter table event replica identity full;
             create table event_1 partition of event for values in (1);
             alter table event_1 replica identity full",
        )
        .await;
    let rules = rule("event", &["event:{id}"]);
    let sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    bed.settled().await;
    bed.sql.run("create table event_2 partition of event for values in (2)").await;
    bed.sql.run("insert into event values (1, 1), (2, 2)").await;
    let refused = bed.sql.client().batch_execute("update event set id = 3 where day = 2").await;
    let refused = refused.unwrap_err().as_db_error().unwrap().message().to_owned();
    assert!(refused.contains("does not have a replica identity"), "{refused}");
    let what = "`public.event_2` has no replica identity: the application's own UPDATE and DELETE";
    let told = || async {
        let (status, body) = sidecar.get("/readyz").await.unwrap();
        status == 200 && body.contains(what) && body.contains("rule `event` goes on")
    };
    eventually(PATIENCE, "it is told, and the rule goes on", told).await;
    sidecar.wait_log("the partition has no replica identity").await;
    let log = sidecar.log().join("\n");
    assert!(!log.contains("widen to `*`"), "{log}");
    let check = super::checked(&sidecar);
    assert!(check.contains(what), "{check}");
    super::psql(&bed, "postgres", &super::printed_sql(&check));
    bed.fill(&["event:2", "event:9"]).await;
    bed.sql.run("update event set id = 3 where day = 2").await;
    bed.gone("event:2").await;
}

/// A partition that holds rows whose changes are not in the log has no identity to be set. The rest
/// of the table, and of the configuration, is set up all the same.
#[tokio::test]
async fn partitions_that_the_log_does_not_have_are_told_as_that_and_stop_nothing_else() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create foreign data wrapper nothing;
             create server nowhere foreign data wrapper nothing;
             create table event (id int not null, day int not null) partition by list (day);
             create table event_1 partition of event for values in (1);
             create unlogged table event_2 partition of event for values in (2);
             create foreign table event_3 partition of event for values in (3) server nowhere;
             insert into event values (1, 1), (2, 2)",
        )
        .await;
    let rules = rule("event", &["event:{id}"]) + crate::support::ITEM_RULES;
    let sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    let told = [
        "`public.event_2`, a partition of `public.event`, is an unlogged table: its changes are \
         not in the log",
        "`public.event_3`, a partition of `public.event`, is a foreign table: its changes are not \
         in the log",
    ];
    let output = sidecar.command(&["setup"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the others are set up"), "{said}");
    let check = super::checked(&sidecar);
    for part in told {
        assert!(said.contains(part) && check.contains(part), "{part}: {said}\n{check}");
    }
    assert!(
        check.contains("error[table_kind]") && !check.contains("partition_identity"),
        "{check}"
    );
    let identities = "select string_agg(relname || ' ' || relreplident::text, ', '
                                        order by relname)
                        from pg_class where relname like 'event%'";
    let expected = "event f, event_1 f, event_2 d, event_3 n";
    assert_eq!(bed.sql.one::<String>(identities).await, expected, "{said}");
    let published =
        "select count(*) from pg_publication_tables where tablename in ('item', 'event')";
    assert_eq!(bed.sql.one::<i64>(published).await, 2, "{said}");
    bed.sql.run("update event set id = id + 1 where day in (1, 2)").await;
    let again = sidecar.command(&["setup"]);
    assert!(text(&again).contains("nothing else is to do"), "{}", text(&again));
}

/// The name of a view as the refresh tells it, in a session that quotes every name.
#[tokio::test]
async fn a_refresh_in_a_session_that_quotes_all_identifiers_removes_its_keys() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create materialized view totals as select 1 as one").await;
    let rules =
        "[[rule]]\nname = \"t\"\nmaterialized_view = \"public.totals\"\nkeys = [\"totals\"]\n";
    let _sidecar = Sidecar::set_up(Settings { rules: rules.to_owned(), ..bed.settings() }).await;
    bed.settled().await;
    bed.fill(&["totals", "other"]).await;
    bed.sql.run("set quote_all_identifiers = on; refresh materialized view totals").await;
    bed.gone("totals").await;
    assert!(bed.has("other").await);
}

/// A server that is down is waited for; a right that one rule lacks stops that rule's keys alone.
#[tokio::test]
async fn check_says_what_run_would_do_and_no_more() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    let said = |sidecar: &Sidecar| {
        let output = sidecar.command(&["check"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        text(&output)
    };
    let good = bed.settings();
    for change in [
        (|new: &mut Settings| new.redis_url = "redis://127.0.0.1:1/0".to_owned()) as fn(&mut _),
        |new| new.postgres_url = "postgres://postgres@127.0.0.1:1/postgres".to_owned(),
    ] {
        sidecar.change(change);
        let said = said(&sidecar);
        assert!(said.contains("would wait for what cannot be reached"), "{said}");
        assert!(!said.contains("refuse to start"), "{said}");
        sidecar.change(|new| *new = good.clone());
    }
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("sweeper").arg("on").arg("nopass").arg("+@all");
    user.arg("~walsweep:*").arg("~list:*");
    let _: redis::Value = user.query_async(&mut bed.cache.clone()).await.unwrap();
    sidecar.change(|new| new.redis_url = good.redis_url.replace("redis://", "redis://sweeper:x@"));
    let report = said(&sidecar);
    assert!(report.contains("error[redis_key_permission]"), "{report}");
    assert!(report.contains("would go on with rule `item`"), "{report}");
    assert!(!report.contains("refuse to start"), "{report}");
    let address = bed.redis.url().replace("redis://", "");
    let address = address.split('/').next().unwrap();
    assert!(report.contains(&format!("redis at `{address}`: user `sweeper`")), "{report}");
    let wrong = "postgres://nobody@";
    sidecar.change(|new| {
        *new = good.clone();
        new.postgres_url = new.postgres_url.replace("postgres://postgres@", wrong);
    });
    let report = said(&sidecar);
    assert!(report.contains("would refuse to start"), "{report}");
}

/// A table or column that was renamed while it runs is named, in `/readyz` and in `check`.
#[tokio::test]
async fn a_renamed_table_and_a_renamed_lookup_column_are_told_with_their_new_names() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table club (id int primary key, label text);
             create table orders (id int primary key, name text not null);
             create table unlike (id int primary key)",
        )
        .await;
    let lookup = "[lookup.club]\nsql = \"select label from club where id = $1\"\n\
                  params = [\"id\"]\n";
    let rules = format!(
        "{lookup}{}{}",
        rule("item", &["item:{club.label}"]),
        rule("orders", &["orders:{id}"])
    );
    let sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    bed.settled().await;
    bed.sql.run("alter table orders rename to order_s").await;
    bed.sql.run("alter table club rename label to labels").await;
    let told = async |part: &str| {
        let told =
            || async { sidecar.get("/readyz").await.is_some_and(|(_, body)| body.contains(part)) };
        eventually(PATIENCE * 3, part, told).await;
        let check = super::checked(&sidecar);
        assert!(check.contains(part), "{check}");
    };
    told("did you mean `public.order_s`").await;
    told("club.labels").await;
    bed.sql.run("drop table order_s").await;
    let check = super::checked(&sidecar);
    assert!(check.contains("it was dropped or renamed"), "{check}");
    assert!(!check.contains("did you mean `public."), "no table is like it: {check}");
}

/// A slot that nobody reads fills the disk: that is a warning, not a remark.
#[tokio::test]
async fn an_unlimited_slot_is_a_warning() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    let check = super::checked(&sidecar);
    assert!(check.contains("warning[slot_keep_unlimited]"), "{check}");
    bed.postgres.conf("max_slot_wal_keep_size = '20GB'").await.unwrap();
    let check = super::checked(&sidecar);
    assert!(!check.contains("slot_keep_unlimited"), "{check}");
}

/// Whoever mistypes a table does not want it freed.
#[tokio::test]
async fn a_table_that_is_suggested_is_not_offered_to_be_freed() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run("create table carts (id int primary key); create table shop (id int primary key)")
        .await;
    let of = |names: &[&str]| names.iter().map(|name| rule(name, &["k:{id}"])).collect::<String>();
    let rules = of(&["carts", "shop"]);
    let mut sidecar = Sidecar::new(Settings { rules, ..bed.settings() });
    sidecar.setup();
    sidecar.change(|new| new.rules = of(&["cart"]));
    let check = super::checked(&sidecar);
    assert!(check.contains("did you mean `public.carts`"), "{check}");
    assert!(!check.contains("drop table only \"public\".\"carts\""), "{check}");
    assert!(check.contains("drop table only \"public\".\"shop\""), "of another one it is: {check}");
}

/// Without a publication nothing is older than it: it is created, and the slot left, for nothing
/// tells any more whose that is.
#[tokio::test]
async fn a_missing_publication_is_told_as_that_alone() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    bed.sql.run("drop publication walsweep").await;
    let check = super::checked(&sidecar);
    assert!(check.contains("there is no publication"), "{check}");
    assert!(!check.contains("older than"), "{check}");
    assert_eq!(check.matches("error[").count(), 1, "{check}");
    let sql = super::printed_sql(&check);
    assert!(sql.contains("create publication") && !sql.contains("pg_drop_"), "{sql}");
    assert!(check.contains("slot `walsweep` is left") && !check.contains("drop it"), "{check}");
    super::psql(&bed, "postgres", &sql);
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    let output = sidecar.command(&["check"]);
    assert!(output.status.success(), "{}", text(&output));
}
