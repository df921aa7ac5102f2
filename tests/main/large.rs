//! Rows and messages of any size: memory stays flat, and what is too large to be kept widens (I5,
//! I6). Whoever may write a row decides how large it is, and every role may call
//! `pg_logical_emit_message`.

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually};

/// One rule for what is small, one for what may be large, and one that asks whether it changed.
const RULES: &str = r#"
[[rule]]
name = "small"
table = "public.big"
keys = ["big:{id}", "name:{name}"]

[[rule]]
name = "large"
table = "public.big"
keys = ["body:{body|sha256:8}:{id}"]

[[rule]]
name = "changed"
table = "public.big"
changed = ["body"]
operations = ["update"]
keys = ["changed:{id}"]

[[rule]]
name = "when"
table = "public.big"
operations = ["update"]
when = "new.body != old.body"
keys = ["when:{id}"]

[[rule]]
name = "app"
message = "app"
keys = ["app:*"]
"#;

const KEYS: [&str; 11] = [
    "big:1",
    "big:2",
    "name:one",
    "name:uno",
    "body:x:1",
    "body:x:2",
    "changed:1",
    "when:1",
    "app:1",
    "app:2",
    "other",
];

/// More than this much address space, in KiB, cannot be had: without its limits the program aborts
/// at one of these rows.
const ADDRESS_SPACE_KIB: u64 = 160 * 1024;

/// Memory that such a row or message may take for a moment, in KiB: some buffers of a megabyte.
const GROWTH_KIB: u64 = 8 * 1024;

/// 100 MB.
const BODY: &str = "repeat('0123456789', 10000000)";

async fn bed() -> (Bed, Sidecar) {
    let bed = Bed::new(&["logical_decoding_work_mem = 64kB"]).await;
    bed.sql
        .run(
            "create table big (id int primary key, name text, body text, more text);
             alter table big replica identity full;
             alter table big alter body set storage external;
             alter table big alter more set storage external;",
        )
        .await;
    let ulimit = format!("-v {ADDRESS_SPACE_KIB}");
    let settings = Settings { rules: RULES.to_owned(), ulimit, ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    (bed, sidecar)
}

/// Runs statements, and holds which keys are gone when all of it is confirmed.
async fn check(bed: &Bed, statements: &str, gone: &[&str]) {
    bed.fill(&KEYS).await;
    bed.sql.run(statements).await;
    bed.settled().await;
    for key in KEYS {
        assert_eq!(bed.has(key).await, !gone.contains(&key), "{key} after {statements}");
    }
}

/// The largest resident memory that a process ever had, in KiB.
pub(crate) fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn widened(sidecar: &Sidecar, rule: &str, reason: &str) -> f64 {
    let name = format!("walsweep_widened_total{{rule=\"{rule}\",reason=\"{reason}\"}}");
    sidecar.metric(&name).await
}

#[tokio::test]
async fn rows_of_100_mb_pass_in_little_memory_and_only_what_is_large_widens() {
    let (bed, sidecar) = bed().await;
    let before = peak(sidecar.id());
    let (one, other) = ("body:x:1", "body:x:2");
    let insert = format!("insert into big values (1, 'one', {BODY}, repeat('x', 2000000))");
    check(&bed, &insert, &["big:1", "name:one", one]).await;
    let update = format!("update big set name = 'uno', body = 'x' || {BODY} where id = 1");
    let all = ["big:1", "name:one", "name:uno", one, "changed:1", "when:1"];
    check(&bed, &update, &all).await;
    // The body is not sent again: as unchanged as an old value that is known would be.
    check(
        &bed,
        "update big set name = 'one' where id = 1",
        &["big:1", "name:one", "name:uno", one, "when:1"],
    )
    .await;
    check(
        &bed,
        "update big set body = 'small' where id = 1",
        &["big:1", "name:one", one, "changed:1", "when:1"],
    )
    .await;
    let many = format!(
        "begin;
         insert into big values (2, 'two', {BODY}, null);
         savepoint undone;
         update big set name = 'uno' where id = 1;
         rollback to undone;
         insert into big
         select id, 'one', 'x', repeat('x', 1100000) from generate_series(11, 60) id;
         commit"
    );
    check(&bed, &many, &["big:2", "name:one", other]).await;
    check(&bed, "delete from big where id = 2", &["big:2", other]).await;
    assert!(widened(&sidecar, "large", "large_value").await >= 6.0);
    assert!(widened(&sidecar, "small", "large_value").await < 0.5, "its values are small");
    let growth = peak(sidecar.id()) - before;
    println!("{growth} KiB more than {before}");
    assert!(growth < GROWTH_KIB, "{growth} KiB more than {before}");
    sidecar.assert_quiet(&["watermark_missing"]);
}

#[tokio::test]
async fn messages_of_100_mb_pass_in_little_memory() {
    let (bed, sidecar) = bed().await;
    let before = peak(sidecar.id());
    bed.sql.run("create role anybody login").await;
    let emit = |kind: &str, prefix: &str, content: &str| {
        format!(
            "set role anybody;
             select pg_logical_emit_message({kind}, {prefix}, {content});
             reset role"
        )
    };
    check(&bed, &emit("false", "'app'", BODY), &[]).await;
    check(&bed, &emit("true", "'other'", BODY), &[]).await;
    check(&bed, &emit("true", BODY, "''"), &[]).await;
    check(&bed, &emit("true", &format!("'app' || {BODY}"), BODY), &[]).await;
    check(&bed, &emit("true", "'app'", BODY), &["app:1", "app:2"]).await;
    let small = r#"'{"keys": ["app:1"]}'"#;
    check(&bed, &emit("true", "'app'", small), &["app:1"]).await;
    assert!(widened(&sidecar, "app", "limit").await >= 1.0);
    let growth = peak(sidecar.id()) - before;
    println!("{growth} KiB more than {before}");
    assert!(growth < GROWTH_KIB, "{growth} KiB more than {before}");
    sidecar.assert_quiet(&["watermark_missing", "a message removes nothing"]);
}

/// A row or message that cannot be taken would be sent again at every start.
#[tokio::test]
async fn a_start_under_a_memory_limit_passes_what_waits() {
    let (bed, mut sidecar) = bed().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.fill(&KEYS).await;
    bed.sql.run(&format!("insert into big values (1, 'one', {BODY}, null)")).await;
    bed.sql.run(&format!("select pg_logical_emit_message(true, 'app', {BODY})")).await;
    sidecar.start();
    sidecar.wait_ready().await;
    for key in ["big:1", "body:x:1", "app:2"] {
        eventually(PATIENCE * 3, key, || async { !bed.has(key).await }).await;
    }
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
}

/// Whoever can write the watermark key may leave anything there: no evidence, and replaced.
#[tokio::test]
async fn a_watermark_of_100_mb_costs_no_memory() {
    let (bed, mut sidecar) = bed().await;
    let leave = async || {
        let large = "x".repeat(100_000_000);
        let mut set = redis::cmd("SET");
        set.arg("walsweep:walsweep").arg(large);
        set.exec_async(&mut bed.cache.clone()).await.unwrap();
    };
    let is_ours = || async { bed.watermark().await.is_some_and(|value| value.len() < 10_000) };
    leave().await;
    bed.sql.run("insert into item values (1000, 'x', 0)").await;
    eventually(PATIENCE, "it is replaced", is_ours).await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    leave().await;
    sidecar.start();
    sidecar.wait_ready().await;
    eventually(PATIENCE, "it is replaced at the start", is_ours).await;
    bed.settled().await;
    assert!(sidecar.metric_sum("walsweep_resyncs_total").await >= 1.0);
    let resident = peak(sidecar.id());
    assert!(resident < 96 * 1024, "{resident} KiB");
}

/// The row of a lookup may be as large as that of a change.
#[tokio::test]
async fn a_large_value_of_a_lookup_widens() {
    let (bed, mut sidecar) = bed().await;
    // What is not answered in time widens, too: a tenth is large enough.
    let body = "repeat('0123456789', 1500000)";
    bed.sql
        .run(&format!(
            "create table detail (id int primary key, name text, body text);
             insert into detail values (1, 'small', {body}), (2, 'small', 'x')"
        ))
        .await;
    assert_eq!(sidecar.sigterm().await, 0);
    let rules = r#"
[lookup.d]
sql = "select name, body from detail where id = $1"
params = ["id"]

[[rule]]
name = "detail"
table = "public.big"
keys = ["detail:{d.body}:{id}", "name:{d.name}:{id}"]
"#;
    sidecar.change(|settings| settings.rules = rules.to_owned());
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    let before = peak(sidecar.id());
    for (id, gone) in
        [(2, &["detail:x:2", "name:small:2"][..]), (1, &["detail:x:1", "name:small:1"])]
    {
        let keys = ["detail:x:1", "detail:x:2", "detail:y:2", "name:small:1", "name:small:2"];
        bed.fill(&keys).await;
        bed.sql.run(&format!("insert into big values ({id}, 'one', 'x', null)")).await;
        bed.settled().await;
        for key in keys {
            assert_eq!(bed.has(key).await, !gone.contains(&key), "{key} after row {id}");
        }
    }
    let growth = peak(sidecar.id()) - before;
    assert!(growth < GROWTH_KIB, "{growth} KiB more than {before}");
    assert!(widened(&sidecar, "detail", "large_value").await >= 1.0);
    assert!(widened(&sidecar, "detail", "lookup_failed").await < 0.5);
}

/// Tags of pages, of which those of tag 2, and of 400 more, have a path of 70 000 bytes.
const TAGS: &str = "
    create table tag (id int primary key, name text not null);
    alter table tag replica identity full;
    create table page (id int primary key, tag_id int, path text);
    insert into tag select id, 'tag' from generate_series(1, 3) id;
    insert into page select id, 1 + id % 3, case id % 3 when 1 then repeat('x', 70000) else id::text
      end from generate_series(1, 9) id;
    insert into tag select id, 'tag' from generate_series(101, 520) id;
    insert into page select id, id, repeat('x', case when id > 500 then 60000 else 70000 end)
      from generate_series(101, 520) id;
    create index on page (tag_id);";

const TAG_RULES: &str = r#"
[lookup.pages]
sql = "select path from page where tag_id = $1"
params = ["id"]
rows = "many"
cache = 0

[[rule]]
name = "tag"
table = "public.tag"
keys = ["page:{pages.path}"]
"#;

/// A value that is too large for a key is no failure of the lookup: it is told as such, and answers
/// to other questions are as exact as ever.
#[tokio::test]
async fn a_large_value_of_many_rows_is_told_and_the_lookup_goes_on() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TAGS).await;
    let settings = Settings { rules: TAG_RULES.to_owned(), ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let many: Vec<String> = (101..=520).map(|id| id.to_string()).collect();
    let many = format!("1, 3, {}", many.join(", "));
    for (tags, is_wide) in
        [("2", true), ("1", false), ("1, 3", false), ("1, 2, 3", true), (&many, true)]
    {
        bed.fill(&["page:3", "page:none"]).await;
        bed.sql.run(&format!("update tag set name = name || 'x' where id in ({tags})")).await;
        bed.settled().await;
        assert!(!bed.has("page:3").await, "{tags}");
        assert_eq!(bed.has("page:none").await, !is_wide, "{tags}");
        assert_eq!(sidecar.readyz().await, Some(200), "{tags}");
    }
    assert!(widened(&sidecar, "tag", "large_value").await >= 2.0);
    assert!(widened(&sidecar, "tag", "lookup_failed").await < 0.5);
    sidecar.wait_log("lookup `pages` finds a value above 64 KiB: `page:{pages.path}`").await;
    let log = sidecar.log();
    assert!(log.iter().any(|line| line.contains("let `lookup.pages.sql` give a shorter value")));
    // Large values take no room from other rows.
    for wrong in ["lookup `pages` fails", "lookup `pages` finds more rows"] {
        assert!(!log.iter().any(|line| line.contains(wrong)), "{wrong}");
    }
}

/// Rows of 60 000 bytes on shelves: 104 of them, with what their places cost, are below 6 MiB. A
/// key that names a value which is missing is none, so that the bodies are read and make no keys.
const SHELVES: &str = "
    create table shelf (id int primary key, name text not null);
    alter table shelf replica identity full;
    create table doc (id int primary key, shelf_id int, body text, missing text);
    insert into shelf select id, 'shelf' from generate_series(1, 4) id;
    insert into doc (id, shelf_id, body)
    select id, case when id < 204 then 1 when id < 309 then 2 when id < 364 then 3 else 4 end,
           lpad(id::text, 60000, 'x')
      from generate_series(100, 418) id;
    create index on doc (shelf_id);";

const SHELF_RULES: &str = r#"
[lookup.docs]
sql = "select id, missing, body from doc where shelf_id = $1"
params = ["id"]
rows = "many"
cache = 0

[[rule]]
name = "shelf"
table = "public.shelf"
keys = ["doc:{docs.id}", "body:{docs.missing}:{docs.body}"]
"#;

/// All rows of one round have 6 MiB, and the next round has as much again.
#[tokio::test]
async fn rows_of_one_round_beyond_their_share_widen_and_the_next_round_has_room_again() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(SHELVES).await;
    let settings = Settings { rules: SHELF_RULES.to_owned(), ..bed.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let counts = "select string_agg(count::text, ' ' order by shelf_id) from
                    (select shelf_id, count(*) from doc group by 1) of_shelf";
    assert_eq!(bed.sql.one::<String>(counts).await, "104 105 55 55");
    let mut widened_so_far = 0.0;
    for (shelves, is_wide) in
        [("1", false), ("2", true), ("1", false), ("3", false), ("4", false), ("3, 4", true)]
    {
        let own =
            format!("select 'doc:' || id from doc where shelf_id in ({shelves}) and id % 10 = 0");
        let own = bed.sql.client().query(&own, &[]).await.unwrap();
        let own: Vec<String> = own.iter().map(|row| row.get(0)).collect();
        assert!(own.len() > 3, "{own:?}");
        bed.fill(&own.iter().map(String::as_str).collect::<Vec<_>>()).await;
        bed.fill(&["doc:0", "other"]).await;
        let update = format!("update shelf set name = name || 'x' where id in ({shelves})");
        bed.sql.run(&update).await;
        bed.settled().await;
        for key in &own {
            assert!(!bed.has(key).await, "{key} after {shelves}");
        }
        assert_eq!(bed.has("doc:0").await, !is_wide, "after {shelves}");
        assert!(bed.has("other").await);
        let widened_now = widened(&sidecar, "shelf", "lookup_limit").await;
        assert_eq!(widened_now > widened_so_far, is_wide, "after {shelves}");
        widened_so_far = widened_now;
    }
    sidecar.wait_log("or more than 6 MiB of them").await;
}
