//! I7, I10: what is swept is what the doubt covers. A shop whose tables, grants and rules change,
//! while walsweep runs and while it does not: which keys of which rules stay.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::AsyncCommands;
use tokio::time::sleep;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

const SHOP: &str = "
    create type state as enum ('open', 'paid');
    create table products (id int primary key, name text, category_id int, price numeric(10, 2));
    create table orders (id int primary key, user_id int, total numeric(10, 2), state state);
    create table order_items (order_id int, product_id int, quantity int,
                              primary key (order_id, product_id));
    alter table products replica identity full;
    alter table orders replica identity full;
    alter table order_items replica identity full;
    insert into products values (1, 'tea', 7, 3), (2, 'pot', 8, 20);
    insert into orders values (1, 5, 6, 'open');
    insert into order_items values (1, 1, 2);";

const RULES: &str = r#"
[lookup.product]
sql = "select category_id from products where id = $1"
params = ["product_id"]

[[rule]]
name = "products"
table = "public.products"
keys = ["product:{id}", "category:{category_id}:*"]

[[rule]]
name = "orders"
table = "public.orders"
changed = ["total", "state"]
keys = ["order:{id}", "user:{user_id}:orders"]

[[rule]]
name = "items"
table = "public.order_items"
keys = ["cart:{order_id}", "top:{product.category_id}"]
"#;

/// Two keys of each template, by the word that they begin with.
const FAMILIES: [&str; 6] = ["product", "category", "order", "user", "cart", "top"];

/// The families whose keys each rule gives, and none of the lookup's table.
const OF_PRODUCTS: [&str; 3] = ["product", "category", "top"];

fn keys(family: &str) -> [String; 2] {
    match family {
        "category" => ["category:7:a", "category:9:b"].map(str::to_owned),
        "user" => ["user:5:orders", "user:6:orders"].map(str::to_owned),
        _ => [format!("{family}:1"), format!("{family}:7")],
    }
}

async fn fill(bed: &Bed) {
    for key in FAMILIES.iter().flat_map(|family| keys(family)) {
        bed.fill(&[&key]).await;
    }
    bed.fill(&["session:1"]).await;
}

/// How many keys each family has.
async fn counts(bed: &Bed) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for family in FAMILIES {
        let mut count = 0;
        for key in keys(family) {
            count += usize::from(bed.has(&key).await);
        }
        counts.insert(family, count);
    }
    assert!(bed.has("session:1").await, "no rule's");
    counts
}

/// All keys are there but those of the families that were swept.
async fn expect(bed: &Bed, swept: &[&str], what: &str) {
    let left = |family: &&'static str| (*family, if swept.contains(family) { 0 } else { 2 });
    let expected: BTreeMap<&str, usize> = FAMILIES.iter().map(left).collect();
    assert_eq!(counts(bed).await, expected, "{what}");
}

async fn shop() -> (Bed, Sidecar) {
    let bed = Bed::new(&[]).await;
    bed.sql.run(SHOP).await;
    let settings = Settings { rules: RULES.to_owned(), ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    (bed, sidecar)
}

async fn resyncs(sidecar: &Sidecar) -> f64 {
    sidecar.metric_sum("walsweep_resyncs_total").await
}

/// Stops it, changes something, and starts it again.
async fn restart(bed: &Bed, sidecar: &mut Sidecar, change: impl AsyncFnOnce(&mut Sidecar)) {
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    fill(bed).await;
    change(sidecar).await;
    sidecar.start();
    sidecar.wait_ready().await;
}

/// Long enough for two looks.
async fn looked() {
    sleep(Duration::from_secs(5)).await;
}

/// Statements that change no row that anybody read.
const NOTHING: [&str; 17] = [
    "alter table order_items add column note text",
    "alter table products add column rating int not null default 5",
    "alter table orders add column since state default 'paid'",
    "grant usage on schema public to public",
    "create role reader; grant usage on schema public to reader",
    "grant select on products to reader; grant select (id) on orders to reader",
    "alter table orders owner to reader",
    "alter schema public owner to reader",
    "comment on table products is 'what we sell'; comment on column products.name is 'the name'",
    "alter table products alter column name set statistics 500",
    "alter table products alter column name set default 'new'",
    "alter table products alter column name set not null",
    "alter table products alter column name set storage external",
    "create index on products (name)",
    "alter table orders set (fillfactor = 80)",
    "analyze products; vacuum products",
    "alter table products replica identity using index products_pkey; alter table products replica \
     identity full",
];

#[tokio::test]
async fn what_changes_no_row_sweeps_nothing_while_it_runs() {
    let (bed, mut sidecar) = shop().await;
    let reconnects = "walsweep_reconnects_total{peer=\"postgres\"}";
    fill(&bed).await;
    for change in NOTHING {
        for statement in change.split("; ") {
            bed.sql.run(statement).await;
        }
    }
    looked().await;
    expect(&bed, &[], "all at once").await;
    assert_eq!(resyncs(&sidecar).await, 1.0, "but for the first start");
    assert_eq!(sidecar.metric(reconnects).await, 0.0, "no session ended");
    // And the next start knows of it.
    restart(&bed, &mut sidecar, async |_| {}).await;
    expect(&bed, &[], "after it").await;
    // It works on, with the columns that are new.
    bed.sql.run("update orders set total = 7, since = 'open' where id = 1").await;
    bed.gone("order:1").await;
}

#[tokio::test]
async fn what_changes_no_row_sweeps_nothing_across_a_restart() {
    let (bed, mut sidecar) = shop().await;
    for change in NOTHING {
        restart(&bed, &mut sidecar, async |_| {
            for statement in change.split("; ") {
                bed.sql.run(statement).await;
            }
        })
        .await;
        expect(&bed, &[], change).await;
        assert_eq!(resyncs(&sidecar).await, 0.0, "{change}");
    }
}

/// Statements that may change what readers see, each with the families of keys that it is about.
const CHANGES: [(&str, &[&str]); 8] = [
    (
        "alter table products alter column name type text using upper(name)",
        &["product", "category", "top"],
    ),
    (
        "alter table orders drop column user_id; alter table orders add column user_id int",
        &["order", "user"],
    ),
    ("alter table orders alter column total type numeric(12, 3)", &["order", "user"]),
    ("alter type state rename value 'open' to 'new'", &["order", "user"]),
    (
        "alter type state rename value 'paid' to 'x'; alter type state rename value 'x' to 'paid'",
        &["order", "user"],
    ),
    (
        "alter table order_items rename to gone; alter table gone rename to order_items",
        &["cart", "top"],
    ),
    (
        "alter publication walsweep drop table orders; alter publication walsweep add table orders",
        &["order", "user"],
    ),
    ("alter table products rename column price to cost", &["product", "category", "top"]),
];

#[tokio::test]
async fn a_table_that_reads_otherwise_sweeps_the_keys_of_its_rules_and_lookups_while_it_runs() {
    let (bed, sidecar) = shop().await;
    let mut count = 1.0;
    for (change, swept) in CHANGES {
        fill(&bed).await;
        bed.sql.run(&format!("begin; {change}; commit")).await;
        count += 1.0;
        let done =
            || async { resyncs(&sidecar).await == count && sidecar.readyz().await == Some(200) };
        eventually(PATIENCE, change, done).await;
        expect(&bed, swept, change).await;
        bed.settled().await;
    }
    assert_eq!(
        sidecar.metric("walsweep_resyncs_total{reason=\"tables_changed\"}").await,
        count - 1.0
    );
    let of_lookup = "read by a lookup: column `name` of `public.products` was altered";
    for said in [
        "a new session with postgres begins: what the rules read was changed: column `name` of \
         `public.products` was altered",
        "keys of rule `products`: column `name` of `public.products` was altered",
        &format!("2 keys of rule `items` ({of_lookup})"),
        "4 keys of rule `orders` (column `user_id` of `public.orders` was altered)",
        "4 keys of rule `orders` (a label of an enum of `public.orders` was altered)",
        "(`public.order_items` was renamed)",
        "(`public.orders` is another, or is published or secured otherwise)",
    ] {
        sidecar.wait_log(said).await;
    }
    let warns = |line: &String| line.contains("WARN") && line.contains("session with postgres");
    assert!(!sidecar.log().iter().any(warns), "what has to end a session is no trouble");
}

#[tokio::test]
async fn a_table_that_reads_otherwise_sweeps_the_keys_of_its_rules_and_lookups_at_the_next_start() {
    let (bed, mut sidecar) = shop().await;
    for (change, swept) in CHANGES {
        restart(&bed, &mut sidecar, async |_| {
            bed.sql.run(&format!("begin; {change}; commit")).await;
        })
        .await;
        expect(&bed, swept, change).await;
        assert_eq!(resyncs(&sidecar).await, 1.0, "{change}");
        restart(&bed, &mut sidecar, async |_| {}).await;
        expect(&bed, &[], "and once").await;
    }
}

/// Edits of the rules: what is replaced by what, and the families that are swept.
const EDITS: [(&str, &str, &[&str]); 11] = [
    ("changed = [\"total\", \"state\"]\n", "changed = [\"state\"]\n", &[]),
    ("changed = [\"state\"]\n", "changed = [\"state\", \"user_id\"]\n", &["order", "user"]),
    ("name = \"orders\"\n", "name = \"orders\"\noperations = [\"update\", \"delete\"]\n", &[]),
    ("operations = [\"update\", \"delete\"]\n", "", &["order", "user"]),
    ("name = \"items\"\n", "name = \"items\"\nwhen = \"new.quantity > 1\"\n", &[]),
    ("new.quantity > 1", "new.quantity > 2", &["cart", "top"]),
    (", \"user:{user_id}:orders\"]", "]", &[]),
    ("\"order:{id}\"]", "\"order:{id}\", \"user:{user_id}:orders\"]", &["user"]),
    ("select category_id from", "select category_id + 1 as category_id from", &["top"]),
    ("name = \"products\"", "name = \"wares\"", &[]),
    ("keys = [\"product:{id}\"", "immutable = [\"id\"]\nkeys = [\"product:{id}\"", &[]),
];

#[tokio::test]
async fn an_edit_sweeps_what_the_rules_cover_that_they_did_not() {
    let (bed, mut sidecar) = shop().await;
    for (from, to, swept) in EDITS {
        restart(&bed, &mut sidecar, async |sidecar| {
            sidecar.change(|settings| {
                assert!(settings.rules.contains(from), "{from}");
                settings.rules = settings.rules.replacen(from, to, 1);
            });
            let check = text(&sidecar.command(&["check"]));
            let told = check.contains("the next start will sweep keys of rule");
            assert_eq!(told, !swept.is_empty(), "{to}\n{check}");
        })
        .await;
        expect(&bed, swept, to).await;
        let expected = f64::from(u8::from(!swept.is_empty()));
        assert_eq!(
            sidecar.metric("walsweep_resyncs_total{reason=\"other_rules\"}").await,
            expected
        );
        assert_eq!(resyncs(&sidecar).await, expected, "{to}");
    }
    sidecar.wait_log("2 keys of rule `orders` (new, or covering more than before)").await;
}

/// Keys that a first start will take are told before they are taken; where nothing goes, nothing is
/// told.
#[tokio::test]
async fn check_says_what_the_next_start_will_sweep() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(SHOP).await;
    let mut sidecar = Sidecar::new(Settings { rules: RULES.to_owned(), ..bed.settings() });
    let check = |sidecar: &Sidecar| text(&sidecar.command(&["check"]));
    assert!(check(&sidecar).contains("the next start will sweep everything: the slot is new"));
    sidecar.setup();
    fill(&bed).await;
    let said = check(&sidecar);
    let everything =
        "the next start will sweep everything: walsweep's watermark key is not in redis";
    assert!(said.contains(everything) && said.contains("`category:*:*`"), "{said}");
    expect(&bed, &[], "it only asks").await;
    assert_eq!(bed.watermark().await, None);
    sidecar.start();
    sidecar.wait_ready().await;
    expect(&bed, &FAMILIES, "the first start").await;
    let log = sidecar.log();
    let sweeps = log.iter().find(|line| line.contains("sweeping everything")).expect("it says so");
    assert!(sweeps.contains("`category:*:*`"), "before, and what goes: {sweeps}");
    bed.settled().await;
    assert!(!check(&sidecar).contains("will sweep"), "while it runs");
    assert_eq!(sidecar.sigterm().await, 0);
    assert!(!check(&sidecar).contains("will sweep"));
    bed.sql.run("alter table orders drop column total").await;
    let said = check(&sidecar);
    assert!(said.contains("error[column_missing]"), "{said}");
    assert!(
        said.contains("the next start will sweep keys of rule `orders`: suspended now"),
        "{said}"
    );
}

/// The fingerprints may be evicted, or somebody else's: then nothing tells what changed.
#[tokio::test]
async fn fingerprints_that_are_gone_or_wrong_are_answered_with_a_sweep_if_anything_changed() {
    let (mut bed, mut sidecar) = shop().await;
    let stored = async |bed: &mut Bed| -> Vec<String> {
        bed.cache.keys("walsweep:walsweep:rules:*").await.unwrap()
    };
    let [key] = stored(&mut bed).await.try_into().unwrap();
    let ttl: i64 = bed.cache.ttl(&key).await.unwrap();
    assert_eq!(ttl, -1, "they stay as long as the watermark");
    let value: String = bed.cache.get(&key).await.unwrap();
    assert!(!value.contains("order") && !value.contains("category"), "hashes only: {value}");
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let _: () = bed.cache.del(&key).await.unwrap();
    fill(&bed).await;
    sidecar.start();
    sidecar.wait_ready().await;
    expect(&bed, &[], "nothing changed").await;
    bed.settled().await;
    assert_eq!(stored(&mut bed).await, [key.as_str()], "they are there again");
    for wrong in [None, Some("{}")] {
        let [key] = stored(&mut bed).await.try_into().unwrap();
        assert_eq!(sidecar.sigterm().await, 0);
        match wrong {
            None => bed.cache.del::<_, ()>(&key).await.unwrap(),
            Some(wrong) => bed.cache.set::<_, _, ()>(&key, wrong).await.unwrap(),
        }
        fill(&bed).await;
        bed.sql.run(&format!("alter table orders add column c{} int", wrong.is_some())).await;
        sidecar.start();
        sidecar.wait_ready().await;
        expect(&bed, &FAMILIES, "nobody knows what changed").await;
        bed.settled().await;
    }
    assert_eq!(stored(&mut bed).await.len(), 1, "those from before are gone");
    assert_eq!(sidecar.sigterm().await, 0);
    assert!(sidecar.command(&["teardown"]).status.success());
    let own: Vec<String> = bed.cache.keys("walsweep:*").await.unwrap();
    assert_eq!(own, [""; 0]);
}

/// Changes that came while it ran, and put nothing in doubt, are known to the next start.
#[tokio::test]
async fn what_was_added_while_it_ran_and_altered_while_it_did_not_is_swept() {
    let (bed, mut sidecar) = shop().await;
    bed.sql.run("alter table products add column note text default 'x'").await;
    bed.sql.run("alter type state add value 'sent'").await;
    bed.sql.run("update orders set state = 'sent'").await;
    looked().await;
    restart(&bed, &mut sidecar, async |_| {}).await;
    expect(&bed, &[], "as it is known").await;
    restart(&bed, &mut sidecar, async |_| {
        bed.sql.run("alter type state rename value 'sent' to 'shipped'").await;
    })
    .await;
    expect(&bed, &["order", "user"], "a label").await;
    restart(&bed, &mut sidecar, async |_| {
        bed.sql.run("alter table products rename column note to remark").await;
    })
    .await;
    expect(&bed, &OF_PRODUCTS, "a column").await;
}

/// Changes that come under another name, of a table whose schema was renamed and renamed back.
#[tokio::test]
async fn a_schema_that_is_renamed_and_renamed_back_loses_no_change() {
    let bed = Bed::new(&[]).await;
    let shop = SHOP.replace("table ", "table shop.").replace("into ", "into shop.");
    bed.sql.run(&format!("create schema shop; {shop}")).await;
    let rules = RULES.replace("public.", "shop.").replace("from products", "from shop.products");
    let mut sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    let away = |values: &str| {
        format!(
            "alter schema shop rename to away; update away.orders set total = {values} where id = 1;
             alter schema away rename to shop"
        )
    };
    bed.settled().await;
    fill(&bed).await;
    // Statement by statement: each its own transaction, quicker than a look.
    for statement in away("9").split(';') {
        bed.sql.run(statement).await;
    }
    bed.gone("order:1").await;
    restart(&bed, &mut sidecar, async |_| {
        for statement in away("10").split(';') {
            bed.sql.run(statement).await;
        }
    })
    .await;
    bed.gone("order:1").await;
    assert!(bed.has("order:7").await && bed.has("product:1").await);
    // Another table was to be read meanwhile.
    restart(&bed, &mut sidecar, async |_| {
        bed.sql.run("create schema other; create table other.orders (like shop.orders)").await;
        for statement in [
            "shop rename to away",
            "other rename to shop",
            "shop rename to other",
            "away rename to shop",
        ] {
            bed.sql.run(&format!("alter schema {statement}")).await;
        }
    })
    .await;
    expect(&bed, &["order", "user"], "what has a namesake").await;
}
