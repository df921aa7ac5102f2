//! Whose a publication is: what `setup` made it alters, drops and cleans up; what somebody else
//! made it advises on.

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

use super::{PUBLISHED, rule};

const TABLES: &str = "
    create table shop (id int primary key, name text not null);
    create table cart (id int primary key, name text not null);
    create table other (id int primary key, name text not null);";

const OPERATIONS: &str =
    "select concat(pubinsert, pubupdate, pubdelete, pubtruncate) from pg_publication";

const IDENTITIES: &str = "
    select string_agg(relname || ' ' || relreplident::text, ', ' order by relname)
      from pg_class where relname in ('shop', 'cart', 'other')";

fn settings(bed: &Bed, tables: &[&str]) -> Settings {
    let rules: String = tables.iter().map(|name| rule(name, &["k:{name}"])).collect();
    Settings::new(&bed.postgres, &bed.redis, &rules)
}

#[tokio::test]
async fn a_publication_of_somebody_else_is_advised_and_neither_altered_nor_dropped() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create publication walsweep for table cart, other with (publish = 'insert');
             comment on publication walsweep is 'walsweep reads it, and the warehouse'",
        )
        .await;
    let sidecar = Sidecar::new(settings(&bed, &["shop"]));
    let (published, operations) =
        (bed.sql.one::<String>(PUBLISHED).await, bed.sql.one::<String>(OPERATIONS).await);
    let output = sidecar.command(&["setup"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    for part in [
        "was not made by `walsweep setup`",
        "alter publication \"walsweep\" add table only \"public\".\"shop\";",
        "alter publication \"walsweep\" set (publish = 'insert, update, delete, truncate');",
        "hint: ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let is_same = async |what: &str| {
        assert_eq!(bed.sql.one::<String>(PUBLISHED).await, published, "{what}");
        assert_eq!(bed.sql.one::<String>(OPERATIONS).await, operations, "{what}");
        let slots: i64 = bed.sql.one("select count(*) from pg_replication_slots").await;
        assert_eq!(slots, 0, "{what}");
    };
    is_same("setup").await;
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    for line in script.lines().filter(|line| line.contains("alter publication")) {
        assert!(line.starts_with("-- "), "left to its owner: {line}");
    }
    let printed = text(&sidecar.command(&["teardown", "--print"]));
    assert!(!printed.contains("drop publication"), "{printed}");
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("left publication `walsweep` of `postgres`"), "{said}");
    is_same("teardown").await;
    // Its owner hands it over.
    let check = super::checked(&sidecar);
    let (_, after) = check.split_once("info[publication_foreign]").expect("it is told");
    let sql = super::printed_sql(after.split("\ninfo[").next().unwrap());
    super::psql(&bed, "postgres", &sql);
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart other shop");
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
}

#[tokio::test]
async fn a_rule_that_is_taken_out_frees_what_was_published_for_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("alter table other replica identity full").await;
    let mut sidecar = Sidecar::new(settings(&bed, &["shop", "cart", "other"]));
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(IDENTITIES).await, "cart f, other f, shop f");
    // Not by `setup`, and so not its to take out.
    bed.sql.run("create table hand (id int primary key)").await;
    bed.sql.run("alter publication walsweep add table hand").await;
    sidecar.change(|new| new.rules = settings(&bed, &["shop"]).rules);
    let said = super::checked(&sidecar);
    assert_eq!(said.matches("info[table_unneeded]").count(), 2, "{said}");
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "hand shop");
    let expected = "cart d, other f, shop f";
    assert_eq!(bed.sql.one::<String>(IDENTITIES).await, expected, "`other` was full before");
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains("nothing to do"), "{said}");
    // Another publication needs the identity of a table that has no other.
    bed.sql.run("create table bare (name text); create publication theirs for table item").await;
    sidecar.change(|new| new.rules = settings(&bed, &["shop", "bare"]).rules);
    sidecar.setup();
    bed.sql.run("alter publication theirs add table bare").await;
    sidecar.change(|new| new.rules = settings(&bed, &["shop"]).rules);
    let said = super::checked(&sidecar);
    assert!(said.contains("the full replica identity of `public.bare` stays"), "{said}");
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "hand shop");
    bed.sql.run("insert into bare values ('x'); update bare set name = 'y'").await;
}

/// `setup` before the restart takes a table from a walsweep that still has its rule.
#[tokio::test]
async fn whoever_takes_a_rule_out_is_told_to_reload_what_runs() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let mut sidecar = Sidecar::set_up(settings(&bed, &["shop", "cart"])).await;
    bed.settled().await;
    sidecar.change(|new| new.rules = settings(&bed, &["shop"]).rules);
    let check = super::checked(&sidecar);
    assert!(
        check.contains("`walsweep reload` first, if it runs since the rule was there"),
        "{check}"
    );
    let said = text(&sidecar.command(&["setup"]));
    let told = "-- If walsweep did not reload since the rules of `public.cart` went, let it do so: \
                it has them still, and suspends them";
    assert!(said.contains(told), "{said}");
    let reload = "if the configuration no longer has the rule, `walsweep reload`";
    let told = || async {
        let (_, body) = sidecar.get("/readyz").await.unwrap();
        body.contains("rule `cart` is suspended") && body.contains(reload)
    };
    eventually(PATIENCE, "the rule is suspended, and how that ends is told", told).await;
    let said = text(&sidecar.command(&["reload"]));
    assert!(said.contains("rule `cart` removed"), "{said}");
    sidecar.wait_ready().await;
    assert!(text(&sidecar.command(&["setup"])).contains("nothing to do"));
}

/// I10: a partition whose own rule went is still published as a part of its table.
#[tokio::test]
async fn a_partition_that_another_rule_needs_keeps_its_identity() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table ev (id int, k int, name text) partition by list (k);
             create table ev1 partition of ev for values in (1);
             create table ev2 partition of ev for values in (2);
             insert into ev values (1, 1, 'a'), (2, 2, 'b')",
        )
        .await;
    let mut sidecar = Sidecar::new(settings(&bed, &["ev1"]));
    sidecar.setup();
    bed.sql.run("update ev set name = 'c' where k = 1").await;
    sidecar.change(|new| new.rules = settings(&bed, &["ev"]).rules);
    let printed = text(&sidecar.command(&["setup", "--print"]));
    sidecar.setup();
    // Not for a moment, and not in what is printed.
    assert!(
        printed.contains("drop table only") && !printed.contains("identity default"),
        "{printed}"
    );
    bed.sql.run("update ev set name = 'd'; delete from ev where id = 1").await;
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains("nothing to do"), "{said}");
}

/// I10: the other way round, a partition of a table whose rule went has a rule of its own now.
#[tokio::test]
async fn a_partition_that_gets_a_rule_of_its_own_keeps_its_identity_until_that_goes_too() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create table ev (id int, k int, name text) partition by list (k);
             create table ev1 partition of ev for values in (1);
             create table ev2 partition of ev for values in (2);
             insert into ev values (1, 1, 'a'), (2, 2, 'b')",
        )
        .await;
    let identities = "select string_agg(relname || ' ' || relreplident::text, ', '
                                        order by relname)
                        from pg_class where relname like 'ev%'";
    let mut sidecar = Sidecar::new(settings(&bed, &["shop", "ev"]));
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(identities).await, "ev f, ev1 f, ev2 f");
    sidecar.change(|new| new.rules = settings(&bed, &["shop", "ev1"]).rules);
    // Not for a moment, and not in what is printed.
    let default = "\"public\".\"ev1\" replica identity default";
    let check = super::checked(&sidecar);
    assert!(check.contains("of `public.ev1` stays: `public.ev1` is still in use"), "{check}");
    let said = text(&sidecar.command(&["setup"]));
    for text in [&check, &said] {
        assert!(text.contains("drop table only") && !text.contains(default), "{text}");
    }
    assert_eq!(bed.sql.one::<String>(identities).await, "ev d, ev1 f, ev2 d", "{said}");
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "ev1 shop", "{said}");
    bed.sql.run("update ev set name = 'd'; delete from ev where id = 1").await;
    sidecar.change(|new| new.rules = settings(&bed, &["shop"]).rules);
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "shop");
    assert_eq!(bed.sql.one::<String>(identities).await, "ev d, ev1 d, ev2 d");
    bed.sql.run("update ev set name = 'e'").await;
}

/// A relation of two tables that are taken out at once goes back after both, whoever runs the SQL.
#[tokio::test]
async fn an_identity_goes_back_after_all_that_is_taken_out() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create table ev (id int, k int, name text) partition by list (k);
             create table ev1 partition of ev for values in (1);
             create table za partition of ev for values in (2);
             insert into ev values (1, 1, 'a'), (2, 2, 'b');
             create publication walsweep for table ev, ev1, za, shop
               with (publish_via_partition_root = true)",
        )
        .await;
    let memory = "comment on publication walsweep is 'walsweep setup made this, and walsweep \
                  teardown drops it\n{\"tables\":{\"walsweep\":[[\"public\",\"ev\"],\
                  [\"public\",\"ev1\"],[\"public\",\"za\"],[\"public\",\"shop\"]]},\"identities\":[\
                  {\"table\":[\"public\",\"ev\"],\"relation\":[\"public\",\"ev1\"],\"was\":\"d\"},\
                  {\"table\":[\"public\",\"za\"],\"relation\":[\"public\",\"za\"],\
                  \"was\":\"d\"}]}'";
    bed.sql.run(memory).await;
    bed.sql
        .run("alter table ev1 replica identity full; alter table za replica identity full")
        .await;
    let sidecar = Sidecar::new(settings(&bed, &["shop"]));
    let check = super::checked(&sidecar);
    for sql in super::printed_sql(&check).split_inclusive(";\n") {
        bed.sql.run(sql).await;
        bed.sql.run("update ev set name = name || 'x'").await;
    }
    let identities = "select string_agg(relname || ' ' || relreplident::text, ', '
                                        order by relname)
                        from pg_class where relname in ('ev1', 'za')";
    assert_eq!(bed.sql.one::<String>(identities).await, "ev1 d, za d", "{check}");
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "shop");
}

/// A table that is taken out may be published all the same, with its schema.
#[tokio::test]
async fn what_is_still_published_with_its_schema_keeps_its_identity() {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 15 {
        return;
    }
    bed.sql.run(TABLES).await;
    bed.sql.run("create table bare (name text); insert into bare values ('a')").await;
    let mut sidecar = Sidecar::new(settings(&bed, &["shop", "bare"]));
    sidecar.setup();
    bed.sql.run("alter publication walsweep add tables in schema public").await;
    sidecar.change(|new| new.rules = settings(&bed, &["shop"]).rules);
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains("drop table only \"public\".\"bare\""), "{said}");
    bed.sql.run("update bare set name = 'b'; delete from bare").await;
}

/// Two walsweeps in one database with slots and publications of their own: what one changed and the
/// other needs stays, and is not told as what may go back.
#[tokio::test]
async fn what_a_second_walsweep_needs_is_not_undone_by_the_first() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create table ev (id int, k int, name text) partition by list (k);
             create table ev1 partition of ev for values in (1);
             create table ev2 partition of ev for values in (2);
             insert into ev values (1, 1, 'a'), (2, 2, 'b')",
        )
        .await;
    let mut first = Sidecar::new(settings(&bed, &["shop", "ev1"]));
    let second = Settings { name: "second".to_owned(), ..settings(&bed, &["ev"]) };
    let second = Sidecar::new(second);
    first.setup();
    second.setup();
    let write = "update ev set name = name || 'x'";
    bed.sql.run(write).await;
    let told = text(&first.command(&["teardown", "--print"]));
    assert!(!told.contains("\"ev1\" replica identity default"), "{told}");
    assert!(told.contains("publication `second` has it, too"), "{told}");
    first.change(|new| new.rules = settings(&bed, &["shop"]).rules);
    first.setup();
    bed.sql.run(write).await;
    let said = text(&first.command(&["teardown"]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
    bed.sql.run(write).await;
    let said = text(&second.command(&["setup"]));
    assert!(said.contains("nothing to do"), "{said}");
}

/// Slots whose long names begin alike had one trigger between them.
#[tokio::test]
async fn each_of_two_long_slots_has_a_trigger_of_its_own() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create materialized view v as select 1 as a").await;
    let rules = "[[rule]]\nname = \"v\"\nmaterialized_view = \"public.v\"\nkeys = [\"v\"]\n";
    let start = "s".repeat(55);
    let of = |end: &str| {
        let name = format!("{start}{end}");
        Sidecar::new(Settings { name, rules: rules.to_owned(), ..bed.settings() })
    };
    let (first, second) = (of("one"), of("two"));
    first.setup();
    second.setup();
    let count = "select count(*) from pg_event_trigger";
    assert_eq!(bed.sql.one::<i64>(count).await, 2);
    let said = text(&first.command(&["teardown"]));
    assert!(said.contains("dropped event trigger"), "{said}");
    assert_eq!(bed.sql.one::<i64>(count).await, 1, "{said}");
    let fits = |what: &str| {
        let output = second.command(&["check"]);
        assert!(output.status.success(), "{what}: {}", text(&output));
    };
    fits("its own is left");
    // One that an earlier version made is as good, and nobody's to drop alone.
    let older = format!("{start}_refresh");
    let own: String = bed.sql.one("select evtname::text from pg_event_trigger").await;
    bed.sql
        .run(&format!(
            "alter event trigger {own} rename to {older}; alter function {own}() rename to {older}"
        ))
        .await;
    fits("an older name");
    let said = text(&second.command(&["teardown"]));
    assert!(said.contains(&format!("left event trigger `{older}`")), "{said}");
    assert_eq!(bed.sql.one::<i64>(count).await, 1, "{said}");
    let (_, sql) = said.split_once("otherwise ").expect("its removal is told");
    super::psql(&bed, "postgres", sql.split(" removes it").next().unwrap());
    assert_eq!(bed.sql.one::<i64>(count).await, 0, "{said}");
    second.setup();
    bed.sql.run(&format!("alter event trigger {own} disable")).await;
    let output = second.command(&["check"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

/// Two walsweeps with slots of their own and one publication.
#[tokio::test]
async fn what_another_walsweep_uses_is_left_to_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let mut one = Sidecar::new(settings(&bed, &["shop", "cart"]));
    let publication = Some("walsweep".to_owned());
    let of_other = settings(&bed, &["cart"]);
    let other = Sidecar::new(Settings { name: "second".to_owned(), publication, ..of_other });
    one.setup();
    other.setup();
    one.change(|new| new.rules = settings(&bed, &["shop"]).rules);
    one.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart shop");
    let said = text(&one.command(&["teardown"]));
    assert!(said.contains("the walsweep with slot `second` has it, too"), "{said}");
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart", "`shop` was its own alone");
    let said = text(&other.command(&["teardown"]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
}

/// A table that a lookup's kept answers depend on stays published without a rule.
#[tokio::test]
async fn a_table_that_a_lookup_reads_stays_published() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let lookup = "[lookup.cart]\nsql = \"select name from public.cart where id = $1\"\n\
                  params = [\"id\"]\n";
    let of = |tables: &[&str]| {
        let rules = settings(&bed, tables).rules;
        format!("{lookup}{rules}{}", rule("item", &["item:{cart.name}"]))
    };
    let all = Settings { rules: of(&["cart"]), ..bed.settings() };
    let mut sidecar = Sidecar::new(all);
    sidecar.setup();
    sidecar.change(|new| new.rules = of(&[]));
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart item");
}

/// Whoever had put a function there keeps it.
#[tokio::test]
async fn a_function_of_somebody_else_is_not_dropped() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create materialized view v as select 1 as a;
             create function walsweep_refresh() returns int language sql as 'select 7'",
        )
        .await;
    let rules = "[[rule]]\nname = \"v\"\nmaterialized_view = \"public.v\"\nkeys = [\"v\"]\n";
    let sidecar = Sidecar::new(Settings { rules: rules.to_owned(), ..bed.settings() });
    let output = sidecar.command(&["setup"]);
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("is there, and not walsweep's"), "{}", text(&output));
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("left event trigger or function `walsweep_refresh`"), "{said}");
    assert_eq!(bed.sql.one::<i32>("select walsweep_refresh()").await, 7);
    // One that was made before there were comments is known by what it sends.
    bed.sql.run("drop function walsweep_refresh()").await;
    sidecar.setup();
    bed.sql.run("comment on function walsweep_refresh() is null").await;
    bed.sql.run("comment on event trigger walsweep_refresh is null").await;
    sidecar.setup();
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped event trigger"), "{said}");
}
