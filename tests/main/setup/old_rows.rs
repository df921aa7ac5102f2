//! Replica identities that tell a lookup its old rows, of partitioned tables.

use crate::support::{Bed, Settings, Sidecar, text};

/// The rules need no more than the primary keys; the lookup reads `user_id`.
const TABLES: &str = "
    drop table item;
    create table orders (id int primary key, user_id int) partition by range (id);
    create table orders_a partition of orders for values from (0) to (100);
    create table orders_b partition of orders for values from (100) to (200);
    create table item (id int primary key, order_id int not null, count int not null default 1);
    insert into orders select id, id from generate_series(1, 9) id;
    insert into item select id, id from generate_series(1, 9) id;";

const RULES: &str = r#"
[lookup.orders]
sql = "select user_id from public.TABLE where id = $1"
params = ["order_id"]
cache = 0

[[rule]]
name = "item"
table = "public.item"
immutable = ["order_id"]
operations = ["insert", "update"]
keys = ["orders:{orders.user_id}"]

[[rule]]
name = "orders"
table = "public.TABLE"
keys = ["order:{id}"]
"#;

const IDENTITIES: &str = "select string_agg(relname || ' ' || relreplident::text, ', '
                                            order by relname)
                            from pg_class
                           where relname like 'orders%' and relkind in ('r', 'p')";

const PAGES: [&str; 3] = ["orders:3", "orders:4", "orders:5"];

/// An order changes hands together with one of its items: the pages of both users go, and of nobody
/// else, if the old row is told.
async fn stays(bed: &Bed, to: i32) -> bool {
    bed.settled().await;
    bed.fill(&PAGES).await;
    bed.sql
        .run(&format!(
            "begin; update orders set user_id = {to} where id = 3;
             update item set count = count + 1 where order_id = 3; commit"
        ))
        .await;
    for page in ["orders:3", "orders:4"] {
        bed.gone(page).await;
    }
    bed.settled().await;
    bed.has("orders:5").await
}

/// Rows that a partition logs are marked by the identity of the table under whose name it is
/// published: both have to be full, and none but those.
#[tokio::test]
async fn old_rows_of_a_partitioned_table_are_told_once_setup_has_run() {
    for (table, via_root, full, only_partition) in [
        ("orders", true, "orders f, orders_a f, orders_b f", false),
        ("orders_a", false, "orders d, orders_a f, orders_b d", true),
    ] {
        let bed = Bed::new(&[]).await;
        bed.sql.run(TABLES).await;
        let rules = RULES.replace("TABLE", table);
        let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
        let publish = format!(
            "create publication walsweep for table item, {table}
               with (publish_via_partition_root = {via_root})"
        );
        bed.sql.run(&publish).await;
        bed.sql.run(crate::data::ADOPT).await;
        sidecar.start();
        sidecar.wait_ready().await;
        assert!(!stays(&bed, 4).await, "{table}: the old row is not told");
        let check = text(&sidecar.command(&["check"]));
        let told = "warning[lookup_identity]";
        assert_eq!(check.matches(told).count(), 1, "of all partitions at once: {check}");
        // The partition alone is enough only where it is published under its own name.
        bed.sql.run("alter table orders_a replica identity full").await;
        let back = "update orders set user_id = 3 where id = 3";
        bed.sql.run(back).await;
        assert_eq!(stays(&bed, 4).await, only_partition, "{table}");
        let check = text(&sidecar.command(&["check"]));
        assert_eq!(!check.contains(told), only_partition, "{check}");
        sidecar.setup();
        assert_eq!(bed.sql.one::<String>(IDENTITIES).await, full, "{table}");
        let check = text(&sidecar.command(&["check"]));
        assert!(!check.contains(told), "{check}");
        bed.sql.run(back).await;
        assert!(stays(&bed, 4).await, "{table}: the old row is told");
    }
}

/// Identities that `setup` set for a lookup are undone with the table's rule, partitions included.
#[tokio::test]
async fn a_table_that_is_freed_gets_the_identities_back_that_a_lookup_had_changed() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let rules = RULES.replace("TABLE", "orders");
    let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(IDENTITIES).await, "orders f, orders_a f, orders_b f");
    sidecar.change(|new| new.rules = super::rule("item", &["item:{id}"]));
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(IDENTITIES).await, "orders d, orders_a d, orders_b d");
    let published = "select string_agg(tablename, ' ') from pg_publication_tables";
    assert_eq!(bed.sql.one::<String>(published).await, "item");
    bed.sql.run("update orders set user_id = 7; delete from orders").await;
}
