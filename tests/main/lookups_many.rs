//! Lookups of many rows: each row gives its keys, all that waits is asked for with one statement,
//! and a row that the transaction itself took away is told by its own change.

use std::time::Duration;

use crate::support::{Bed, Settings, Sidecar, always, text};

/// Ten categories of ten products each, beside one that has none, 11; tags are many-to-many.
const TABLES: &str = "
    create table category (id int primary key, name text not null);
    insert into category select id, 'category ' || id from generate_series(1, 11) id;
    create table product (id int primary key, category_id int references category, name text);
    insert into product select id, (id - 1) / 10 + 1, 'product ' || id
      from generate_series(1, 100) id;
    create index on product (category_id);
    alter table category replica identity full;
    alter table product replica identity full;";

const RULES: &str = r#"
[lookup.products]
sql = "select id, name from product where category_id = $1"
params = ["id"]
rows = "many"
limit = 12

[[rule]]
name = "category"
table = "public.category"
keys = ["category:{id}", "product:{products.id}:{products.name|slug}"]
"#;

fn settings(bed: &Bed, rules: &str) -> Settings {
    Settings { rules: rules.to_owned(), ..bed.settings() }
}

async fn bed(rules: &str) -> (Bed, Sidecar) {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let sidecar = Sidecar::set_up(settings(&bed, rules)).await;
    bed.settled().await;
    (bed, sidecar)
}

/// Which of these keys are left, after everything is at rest.
async fn left<'a>(bed: &Bed, keys: &[&'a str]) -> Vec<&'a str> {
    bed.settled().await;
    let mut left = Vec::new();
    for key in keys {
        if bed.has(key).await {
            left.push(*key);
        }
    }
    left
}

#[tokio::test]
async fn each_row_gives_its_keys_and_no_row_gives_none() {
    let (bed, sidecar) = bed(RULES).await;
    let own: Vec<String> = (11..=20).map(|id| format!("product:{id}:product-{id}")).collect();
    let mut own: Vec<&str> = own.iter().map(String::as_str).collect();
    own.push("category:2");
    let others = ["product:10:product-10", "product:21:product-21", "product:11:product-12"];
    bed.fill(&own).await;
    bed.fill(&others).await;
    bed.sql.run("update category set name = 'other' where id = 2").await;
    assert!(left(&bed, &own).await.is_empty());
    assert_eq!(left(&bed, &others).await, others);
    bed.fill(&["category:11"]).await;
    bed.sql.run("update category set name = 'other' where id = 11").await;
    bed.gone("category:11").await;
    assert_eq!(left(&bed, &others).await, others, "it has no products");
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
    // As many as may be, and then one more.
    let limit = "walsweep_widened_total{rule=\"category\",reason=\"lookup_limit\"}";
    for (id, is_wide) in [(201, false), (202, false), (203, true)] {
        bed.fill(&others).await;
        bed.sql
            .run(&format!(
                "insert into product values ({id}, 5, 'product'); \
                 update category set name = 'c {id}' where id = 5"
            ))
            .await;
        assert_eq!(left(&bed, &others).await.is_empty(), is_wide, "{id}");
        assert_eq!(sidecar.metric(limit).await > 0.5, is_wide, "{id}");
    }
    let said = "lookup `products` finds more rows than its `limit` of 12";
    sidecar.wait_log(said).await;
    for round in 0..3 {
        bed.fill(&others).await;
        bed.sql.run(&format!("update category set name = 'again {round}' where id = 5")).await;
        assert!(left(&bed, &others).await.is_empty());
    }
    let log = sidecar.log();
    let told: Vec<&String> = log.iter().filter(|line| line.contains(said)).collect();
    let [line] = told.as_slice() else { panic!("once in ten seconds: {told:?}") };
    let parts = ["WARN", "`product:{products.id}:", "raise `lookup.products.limit`", "10000"];
    parts.iter().for_each(|part| assert!(line.contains(part), "{part}: {line}"));
}

/// A name that the query's tables no longer have means nothing of the statement around it.
#[tokio::test]
async fn a_column_that_is_gone_widens_and_is_no_column_of_the_statement_around() {
    for column in ["place", "p1", "ordinality"] {
        let rules = format!(
            "[lookup.venue]\nsql = \"select {column} as x from venue where id = $1\"\n\
             params = [\"venue_id\"]\ncache = 0\n\
             [[rule]]\nname = \"show\"\ntable = \"show\"\nkeys = [\"at:{{venue.x}}\"]\n"
        );
        let bed = Bed::new(&[]).await;
        bed.sql
            .run(&format!(
                "create table venue (id int primary key, {column} text);
                 insert into venue values (1, 'hall'), (2, 'club');
                 create table show (id int primary key, venue_id int, name text);
                 alter table show replica identity full;
                 insert into show values (1, 1), (2, 2)"
            ))
            .await;
        let sidecar = Sidecar::set_up(settings(&bed, &rules)).await;
        bed.settled().await;
        bed.sql.run(&format!("alter table venue rename column {column} to town")).await;
        bed.fill(&["at:hall", "at:club"]).await;
        bed.sql.run("update show set name = 'other'").await;
        assert!(left(&bed, &["at:hall", "at:club"]).await.is_empty(), "{column}");
        sidecar.wait_log("SQLSTATE 42703").await;
    }
}

/// A column of a row type is several columns of an array of it.
#[tokio::test]
async fn rows_that_are_asked_for_by_a_row_are_found() {
    let rules = "[lookup.venue]\nsql = \"select town from venue where spot = $1::spot\"\n\
                 params = [\"spot\"]\n\
                 [[rule]]\nname = \"show\"\ntable = \"show\"\nkeys = [\"at:{venue.town}\"]\n";
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create type spot as (x int, y int);
             create table venue (spot spot, town text);
             insert into venue values ((1, 2), 'hall'), ((2, 3), 'club');
             create table show (id int primary key, spot spot, name text);
             alter table show replica identity full;
             insert into show values (1, (1, 2)), (2, (2, 3))",
        )
        .await;
    let sidecar = Sidecar::set_up(settings(&bed, rules)).await;
    bed.settled().await;
    bed.fill(&["at:hall", "at:club", "at:x"]).await;
    bed.sql.run("update show set name = 'other'").await;
    assert_eq!(left(&bed, &["at:hall", "at:club", "at:x"]).await, ["at:x"]);
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
}

/// The time of its statement stands in each key: as many keys, as many statements.
#[tokio::test]
async fn all_that_waits_is_asked_for_with_one_statement() {
    for rows in ["one", "many"] {
        let query = "select extract(epoch from statement_timestamp())::text as at \
                     from category where id = $1";
        let rules = format!(
            "[lookup.time]\nsql = \"{query}\"\nparams = [\"category_id\"]\nrows = \"{rows}\"\n\
             [[rule]]\nname = \"time\"\ntable = \"product\"\nkeys = [\"at:{{time.at}}\"]\n"
        );
        let bed = Bed::new(&[]).await;
        bed.sql.run(TABLES).await;
        bed.sql
            .run(
                "insert into category select id, 'c' from generate_series(1001, 1200) id;
                 insert into product select id, id, 'p' from generate_series(1001, 1200) id",
            )
            .await;
        let sidecar = Sidecar::set_up(settings(&bed, &rules)).await;
        bed.settled().await;
        bed.sql.run("update product set name = 'other' where id > 1000").await;
        bed.settled().await;
        let absent = sidecar.metric("walsweep_keys_absent_total{rule=\"time\"}").await;
        assert!((1.0..3.0).contains(&absent), "{rows}: {absent} statements for 200 rows");
        assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
    }
}

/// Whatever stands in the query's text, together or alone it means the same.
#[tokio::test]
async fn a_query_that_is_asked_for_many_rows_means_what_it_means_for_one() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table word (id int primary key, text text, number text);
             alter table word replica identity full;
             create function pair(text, int) returns setof text language sql stable as
               $$ select t from unnest(array[$1 || '-1', $1 || '-2']) t limit $2 $$",
        )
        .await;
    let queries = [
        "select text as x from word where text = $1",
        r"select text || E'\\$1\'' as x /* $1 ' /* */ */ from word where text = $1 -- $1 '",
        r#"select "a""$1".text || '$1' || $t$ $1 ' $t$ as x from word "a""$1" where text = $1"#,
        "with w as (select * from word where text = $1) select $1::text as x from w \
         where w.text = $1 limit 1",
        "select pair as x from pair($1, (select count(*)::int from word where text = $1))",
        "select max(text) as x from word where text = $1 group by text having count(*) > 0",
        r"select text || '\' as x from word where text = $1",
        "select (select $1 || text) as x from word where text in ($1, 'none') order by $1",
    ];
    let words = ["a", "it's", "\"q\"", "back\\slash", "{b,c}", "NULL", "", " a ", "$1", "ä\n\t"];
    let mut rules = String::new();
    for (at, query) in queries.iter().enumerate() {
        rules.push_str(&format!(
            "[lookup.l{at}]\nsql = '''{query}'''\nparams = [\"text\"]\nrows = \"many\"\ncache = 0\n\
             [[rule]]\nname = \"r{at}\"\ntable = \"word\"\n\
             keys = [\"{at}:{{id}}:{{l{at}.x}}\"]\n"
        ));
    }
    let sidecar = Sidecar::set_up(settings(&bed, &rules)).await;
    let client = bed.sql.client();
    for (id, word) in (0_i32..).zip(words) {
        client.execute("insert into word values ($1, $2)", &[&id, &word]).await.unwrap();
    }
    let (mut keys, mut others) = (Vec::new(), Vec::new());
    for (at, query) in queries.iter().enumerate() {
        for (id, word) in words.iter().enumerate() {
            let rows = client.query(*query, &[word]).await.unwrap();
            assert!(!rows.is_empty(), "{query} of {word}");
            for row in rows {
                let key = format!("{at}:{id}:{}", row.get::<_, String>(0));
                others.push(format!("{key}!"));
                keys.push(key);
            }
        }
    }
    bed.settled().await;
    bed.fill(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    bed.fill(&others.iter().map(String::as_str).collect::<Vec<_>>()).await;
    bed.sql.run("update word set number = 'all'").await;
    bed.settled().await;
    for (key, other) in keys.iter().zip(&others) {
        assert!(!bed.has(key).await, "{key:?} is left");
        assert!(bed.has(other).await, "{other:?} is gone");
    }
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
}

/// A parameter that the server does not take for one row fails for that row alone.
#[tokio::test]
async fn a_parameter_that_fails_widens_its_own_keys_alone() {
    let rules = RULES.replace("$1", "$1::int").replace("\"id\"", "\"code\"");
    let rules = rules.replace("product:{products.id}:{products.name|slug}", "c:{id}:{products.id}");
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run("alter table category add column code text; update category set code = id::text")
        .await;
    let sidecar = Sidecar::set_up(settings(&bed, &rules)).await;
    bed.settled().await;
    bed.sql.run("update category set code = 'three' where id = 3").await;
    bed.settled().await;
    let keys = ["c:1:1", "c:2:11", "c:3:22", "c:4:31", "c:3:1"];
    let others = ["c:1:2x", "c:2:1", "c:4:32x"];
    bed.fill(&keys).await;
    bed.fill(&others).await;
    bed.sql.run("update category set name = 'other' where id < 5").await;
    assert!(left(&bed, &keys).await.is_empty());
    assert_eq!(left(&bed, &others).await, others);
    sidecar.wait_log("SQLSTATE 22P02").await;
    let errors = || bed.postgres.log().matches("invalid input syntax for type integer").count();
    assert!((1..10).contains(&errors()), "the batch, and the row alone: {}", errors());
    let before = errors();
    // That the query can be tried, every two to thirty seconds, says nothing of that row.
    let page = async || sidecar.get("/readyz").await.map(|(_, body)| body).unwrap_or_default();
    always(Duration::from_secs(32), "it is told", async || page().await.contains("22P02")).await;
    let body = page().await;
    assert!(body.contains("a value of a row does not fit the query"), "{body}");
    assert!(!body.contains("locks") && body.contains("22P02 (`$1` is `code`)"), "{body}");
    // A row that is asked again each second is an error a second in the server's log.
    assert_eq!(errors(), before);
}

/// Orders with items, and the pages that are read by their user.
const ORDERS: &str = "
    create table orders (id int primary key, user_id int not null, state text);
    create table item (id int primary key, order_id int references orders on delete cascade,
                       count int not null default 1);
    alter table orders replica identity full;
    alter table item replica identity full;
    insert into orders select id, id, 'new' from generate_series(1, 9) id;
    insert into item select id, (id - 1) / 2 + 1 from generate_series(1, 18) id;";

const ORDER_RULES: &str = r#"
[lookup.order]
sql = "select user_id from orders where id = $1"
params = ["order_id"]

[[rule]]
name = "item"
table = "item"
keys = ["orders:{order.user_id}"]

[[rule]]
name = "order"
table = "orders"
keys = ["order:{id}"]
"#;

async fn orders(rules: &str, conf: &[&str]) -> (Bed, Sidecar) {
    let bed = Bed::new(conf).await;
    bed.sql.run("drop table item").await;
    bed.sql.run(ORDERS).await;
    let sidecar = Sidecar::set_up(settings(&bed, rules)).await;
    bed.settled().await;
    (bed, sidecar)
}

#[tokio::test]
async fn a_row_that_the_transaction_deletes_is_told_by_its_own_change() {
    let (bed, sidecar) = orders(ORDER_RULES, &[]).await;
    let pages = ["orders:1", "orders:2", "orders:3", "orders:4", "orders:5"];
    for (sql, stay) in [
        ("delete from orders where id = 5", &["orders:1", "orders:2", "orders:3", "orders:4"][..]),
        (
            "begin; savepoint a; delete from orders where id = 1; rollback to a;
             delete from item where order_id = 2; delete from orders where id = 2; commit",
            &["orders:1", "orders:3", "orders:4", "orders:5"],
        ),
        (
            "begin; update orders set user_id = 4 where id = 3;
             update item set count = 2 where order_id = 3; commit",
            &["orders:1", "orders:2", "orders:5"],
        ),
    ] {
        bed.fill(&pages).await;
        bed.sql.run(sql).await;
        assert_eq!(left(&bed, &pages).await, stay, "{sql}");
    }
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
    // What no change of the transaction tells is not known.
    bed.sql.run("alter table item drop constraint item_order_id_fkey").await;
    bed.sql.run("delete from orders where id = 1").await;
    bed.settled().await;
    bed.fill(&pages).await;
    bed.sql.run("update item set count = 4 where order_id = 1").await;
    assert!(left(&bed, &pages).await.is_empty());
    let widened = "walsweep_widened_total{rule=\"item\",reason=\"lookup_no_row\"}";
    assert!(sidecar.metric(widened).await > 0.5);
}

/// I5: what the replica identity does not tell of a row that the transaction changed is unknown.
#[tokio::test]
async fn an_old_row_that_the_identity_does_not_tell_widens_until_it_does() {
    let rules = ORDER_RULES.replace("[\"order_id\"]", "[\"order_id\"]\nmissing = \"skip\"");
    let (bed, sidecar) = orders(&rules, &[]).await;
    bed.sql.run("alter table orders replica identity default").await;
    bed.settled().await;
    let pages = ["orders:1", "orders:2", "orders:3", "orders:4", "orders:5"];
    let widened = "walsweep_widened_total{rule=\"item\",reason=\"replica_identity\"}";
    let both = "begin; update orders set user_id = 4 where id = 3;
                update item set count = count + 1 where order_id in (3, 5); commit";
    for (sql, stay, count) in [
        (
            "begin; update orders set user_id = 1 where id = 3;
             update item set count = count + 1 where order_id = 5; commit",
            &["orders:1", "orders:2", "orders:3", "orders:4"][..],
            0.0,
        ),
        (both, &[], 1.0),
        ("delete from orders where id = 2", &[], 2.0),
    ] {
        bed.fill(&pages).await;
        bed.sql.run(sql).await;
        assert_eq!(left(&bed, &pages).await, stay, "{sql}");
        assert!((sidecar.metric(widened).await - count).abs() < 0.5, "{sql}");
    }
    let said = text(&sidecar.command(&["check"]));
    let cure = "alter table \"public\".\"orders\" replica identity full";
    assert!(said.contains("warning[lookup_identity]") && said.contains(cure), "{said}");
    // Another publication's column list: with a full identity these updates would fail.
    let lists = bed.version().await >= 15;
    if lists {
        bed.sql.run("create publication other for table orders (id)").await;
        let said = text(&sidecar.command(&["check"]));
        let why = "publication \"other\" has a column list";
        assert!(said.contains(why) && !said.contains(cure), "{said}");
        assert!(!text(&sidecar.command(&["setup"])).contains(cure));
        bed.sql.run("update orders set user_id = user_id where id = 3").await;
        bed.sql.run("drop publication other").await;
    }
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains(cure), "{said}");
    assert!(text(&sidecar.command(&["setup"])).contains("nothing to do"));
    let said = text(&sidecar.command(&["check"]));
    assert!(!said.contains("lookup_identity"), "{said}");
    bed.sql.run("update orders set user_id = 3 where id = 3").await;
    bed.settled().await;
    bed.fill(&pages).await;
    bed.sql.run(both).await;
    assert_eq!(left(&bed, &pages).await, ["orders:1", "orders:2"]);
}

/// Changes of a partition come under the name of the table, or under its own.
#[tokio::test]
async fn old_rows_of_a_partition_are_told_under_whichever_name() {
    let tables = "
        create table orders (id int primary key, user_id int, state text) partition by range (id);
        create table orders_a partition of orders for values from (0) to (100);
        alter table orders replica identity full;
        alter table orders_a replica identity full;
        create table item (id int primary key, order_id int, count int not null default 1);
        alter table item replica identity full;
        insert into orders select id, id, 'new' from generate_series(1, 9) id;
        insert into item select id, id from generate_series(1, 9) id;";
    for (table, via_root) in
        [("orders_a", true), ("orders_a", false), ("orders", true), ("orders", false)]
    {
        let bed = Bed::new(&[]).await;
        bed.sql.run("drop table item").await;
        bed.sql.run(tables).await;
        let mut rules = ORDER_RULES.replace("from orders", &format!("from {table}"));
        if !via_root {
            rules = rules.replace("table = \"orders\"", "table = \"orders_a\"");
        }
        let mut sidecar = Sidecar::new(settings(&bed, &rules));
        sidecar.setup();
        let set =
            format!("alter publication walsweep set (publish_via_partition_root = {via_root})");
        bed.sql.run(&set).await;
        sidecar.start();
        sidecar.wait_ready().await;
        bed.settled().await;
        let pages = ["orders:3", "orders:4", "orders:5"];
        bed.fill(&pages).await;
        bed.sql
            .run(
                "begin; update orders set user_id = 4 where id = 3;
                 update item set count = 2 where order_id = 3; commit",
            )
            .await;
        assert_eq!(left(&bed, &pages).await, ["orders:5"], "{table} {via_root}");
        assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5, "{table} {via_root}");
    }
}

/// A value that finds a row is not always the row's text: then whichever row is meant.
#[tokio::test]
async fn an_old_row_that_another_text_finds_widens() {
    let any_case = "collate any_case";
    for (kind, collation, given, own, asks) in [
        ("text", any_case, "text", "ABC", "abc"),
        ("text", "", "text", "abc", "abc"),
        ("int", "", "text", "7", "007"),
        ("numeric", "", "numeric", "7.0", "7.00"),
        ("int", "", "bigint", "7", "7"),
    ] {
        let bed = Bed::new(&[]).await;
        bed.sql.run("drop table item").await;
        bed.sql
            .run(&format!(
                "create collation any_case (provider = icu, locale = 'und-u-ks-level2',
                                            deterministic = false);
                 create table orders (id {kind} {collation} primary key, user_id int);
                 alter table orders replica identity full;
                 create table item (id int primary key, order_id {given}, count int);
                 alter table item replica identity full;
                 insert into orders values ('{own}', 3);
                 insert into item values (1, '{asks}', 1)"
            ))
            .await;
        let sidecar = Sidecar::set_up(settings(&bed, ORDER_RULES)).await;
        bed.settled().await;
        let pages = ["orders:3", "orders:4", "orders:5"];
        bed.fill(&pages).await;
        bed.sql
            .run("begin; update orders set user_id = 4; update item set count = 2; commit")
            .await;
        let case = format!("{kind} {collation} {given}");
        let is_exact = ["text  text", "int  bigint"].contains(&case.as_str());
        let stay: &[&str] = if is_exact { &["orders:5"] } else { &[] };
        assert_eq!(left(&bed, &pages).await, stay, "{case}");
        let widened = "walsweep_widened_total{rule=\"item\",reason=\"lookup_old_row\"}";
        assert_eq!(sidecar.metric(widened).await < 0.5, is_exact, "{case}");
    }
}

#[tokio::test]
async fn no_row_gives_no_key_where_the_configuration_says_so() {
    let rules = ORDER_RULES.replace("[\"order_id\"]", "[\"order_id\"]\nmissing = \"skip\"");
    let (bed, sidecar) = orders(&rules, &[]).await;
    bed.sql.run("alter table item drop constraint item_order_id_fkey").await;
    bed.sql.run("delete from orders where id = 1").await;
    bed.settled().await;
    bed.fill(&["orders:1", "orders:2"]).await;
    bed.sql.run("update item set count = 4 where order_id in (1, 2)").await;
    assert_eq!(left(&bed, &["orders:1", "orders:2"]).await, ["orders:1"]);
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
}

/// Subtransactions of a large transaction bring what they know with them, and take it back.
#[tokio::test]
async fn a_large_transaction_in_blocks_tells_of_its_old_rows() {
    let (bed, sidecar) = orders(ORDER_RULES, &["logical_decoding_work_mem = '64kB'"]).await;
    bed.sql
        .run(
            "insert into orders select id, id, 'new' from generate_series(100, 1100) id;
             insert into item select id, id from generate_series(100, 1100) id",
        )
        .await;
    bed.settled().await;
    let pages = ["orders:1", "orders:100", "orders:999", "orders:1100"];
    bed.fill(&pages).await;
    bed.sql
        .run(
            "begin; savepoint a; delete from orders where id = 1; rollback to a;
             savepoint b; delete from orders where id between 100 and 600; release b;
             delete from orders where id between 601 and 1100; commit",
        )
        .await;
    assert_eq!(left(&bed, &pages).await, ["orders:1"]);
    assert!(sidecar.metric_sum("walsweep_widened_total").await < 0.5);
}

/// `check` tells of a lookup that no index serves, and what it prints is a cure.
#[tokio::test]
async fn a_lookup_that_no_index_serves_is_told_with_the_statement_that_makes_one() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table tag (id int primary key, name text);
             alter table tag replica identity full;
             create table \"Tagged\" (product_id int, \"tag id\" int,
                                      primary key (product_id, \"tag id\"));
             create table slug (code varchar(9), tag_id int);
             insert into \"Tagged\" select id, id % 10 from generate_series(1, 60000) id;
             insert into slug select id, id from generate_series(1, 60000) id;
             analyze",
        )
        .await;
    let lookup = |name: &str, sql: &str| {
        format!("[lookup.{name}]\nsql = '''{sql}'''\nparams = [\"id\"]\nrows = \"many\"\n")
    };
    let keys = "keys = [\"p:{tagged.product_id}\", \"q:{joined.id}\", \"s:{slugs.code}\"]";
    let rules = [
        lookup("tagged", "select product_id from \"Tagged\" x where x.\"tag id\" = $1"),
        lookup("joined", "select t.id from tag t join slug s on s.code = t.name where t.id = $1"),
        lookup("slugs", "select code from slug where lower(code) = $1::text"),
        format!("[[rule]]\nname = \"tag\"\ntable = \"tag\"\n{keys}\n"),
    ];
    let sidecar = Sidecar::new(settings(&bed, &rules.concat()));
    sidecar.setup();
    let said = text(&sidecar.command(&["check"]));
    let cures = [
        "create index concurrently on \"public\".\"Tagged\" (\"tag id\")",
        "create index concurrently on \"public\".\"slug\" (code)",
    ];
    for cure in cures {
        assert!(said.contains(&format!("sql: {cure};")), "{cure}\n{said}");
    }
    assert_eq!(said.matches("warning[lookup_index]").count(), 3, "{said}");
    assert!(said.contains("lookup `slugs` reads all of `public.slug`"), "{said}");
    for cure in cures {
        bed.sql.run(cure).await;
    }
    bed.sql.run("create index on slug (lower(code))").await;
    let said = text(&sidecar.command(&["check"]));
    assert!(!said.contains("lookup_index"), "{said}");
}
