//! Faults by the application in its own database: locks, and changes of tables that no row tells.
//!
//! Each fault shows that it took effect: the lock refuses others, the table is gone, a fresh SELECT
//! gives what it did not give before. None of them is an outage: all keys of other tables go as if
//! nothing had happened.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::World;
use crate::cached::{Key, Rows};
use crate::faults::{Kind, Planned};
use crate::inject::insist;
use crate::schema::{
    CHILD_PAGE, FAMILIES, MOOD_READING, NAME_READING, NOTE_READING, PAGE_FAMILIES, PAGES, PHANTOMS,
    PUBLICATION, SECOND_PARTS, SHELVES, STAT, create_page, families_of_rule,
};
use crate::shared::{Fill, PATIENCE, RETRY};

/// Whether a fault showed its effect; inside the error, what it did not show.
pub(crate) type Shown = Result<(), String>;

/// Tables that are locked now and then: of rules, one that a lookup reads, partitions.
const LOCKABLE: [&str; 7] = ["item", "flash", "page", "shelf", "part", "part_a", "part_b"];

/// Nobody waits this long for a table that is not locked.
const MOMENT: &str = "set lock_timeout = '100ms'";

/// Lets a fault of the application strike, and mends it.
pub(crate) async fn inject(world: &World, planned: Planned) -> Shown {
    match planned.kind {
        Kind::LockHeld | Kind::LockQueued => return lock(world, planned).await,
        Kind::DdlTrigger => return miss_refresh(world, planned).await,
        Kind::DdlPartition => return detach(world, planned).await,
        _ => {}
    }
    // What is stale now must not go by a later commit of the same rows.
    world.shared.narrow.store(true, Ordering::Relaxed);
    let owned = timeout(PATIENCE, world.shared.own_all(PAGES.chain(PHANTOMS))).await;
    let _owned = owned.map_err(|_late| "the rows are never free".to_owned())?;
    // Nor by a second removal for an earlier one.
    sleep(world.shared.window * 5 / 4).await;
    let before = prime(world).await?;
    world.shared.history.trouble_begins(scope(planned));
    match planned.kind {
        Kind::DdlConvert | Kind::DdlColumn | Kind::DdlEnum => {
            read_otherwise(world, planned).await?;
            differs(&before, &current(world).await?)
        }
        Kind::DdlDomain => constrain(world, planned).await,
        Kind::DdlIdentity => forget_identity(world, planned).await,
        Kind::DdlPublication => hide(world, planned).await,
        Kind::TableInherited => inherit(world, planned, &before).await,
        Kind::TableSwapped => swap(world, planned).await,
        _ => drop_and_restore(world, planned).await,
    }
}

/// The families of keys that a fault is about.
fn scope(planned: Planned) -> &'static [&'static str] {
    match planned.kind {
        Kind::DdlPublication if !planned.choice.is_multiple_of(3) => &FAMILIES,
        Kind::DdlTrigger => families_of_rule("stat"),
        Kind::DdlPartition => families_of_rule("part"),
        _ => &PAGE_FAMILIES,
    }
}

/// Runs statements in one session, again and again until Postgres takes them.
async fn apply(world: &World, statements: &str) {
    // Others queue behind a lock that is waited for.
    insist(world, &format!("set lock_timeout = '2s'; begin; {statements}; commit")).await;
}

async fn fact(world: &World, query: &str) -> Result<String, String> {
    let sql = world.servers.sql().await.map_err(|error| error.to_string())?;
    let row = sql.query_one(query, &[]).await.map_err(|error| format!("{query}: {error}"))?;
    Ok(row.try_get::<_, Option<String>>(0).ok().flatten().unwrap_or_default())
}

async fn expect(world: &World, query: &str, wanted: &str) -> Shown {
    let found = fact(world, query).await?;
    if found == wanted { Ok(()) } else { Err(format!("{query}: `{found}`, not `{wanted}`")) }
}

/// The rows have this version, as readers see it.
async fn write(world: &World, rows: Vec<i32>, statements: impl Fn(u64) -> String) {
    let version = world.shared.next_version();
    apply(world, &statements(version)).await;
    world.shared.committed(&rows, version);
}

fn pages() -> Vec<i32> {
    PAGES.collect()
}

fn pages_with_readings() -> Vec<i32> {
    PAGES.chain([NAME_READING, NOTE_READING, MOOD_READING]).collect()
}

/// Caches what the tables show now, as readers do, and gives it.
async fn prime(world: &World) -> Result<Vec<(Key, String)>, String> {
    let values = current(world).await?;
    // Redis may be away in the same mixture.
    let mut cache = world.servers.cache();
    for (key, value) in &values {
        match cache.set(&key.name(), value).await {
            Ok(()) => {
                let fill = Fill { value: value.clone(), at: Instant::now(), gap: Duration::ZERO };
                world.shared.filled.lock().unwrap().insert(key.name(), fill);
            }
            Err(error) if error.is_io_error() => break,
            Err(_refused) => {}
        }
    }
    Ok(values)
}

async fn current(world: &World) -> Result<Vec<(Key, String)>, String> {
    let rows = Rows::open(&world.servers.postgres_url, PATIENCE).await;
    let rows = rows.map_err(|error| error.to_string())?;
    let mut values = Vec::new();
    for key in Key::all_defined() {
        let value = rows.value(key).await.map_err(|error| format!("{}: {error}", key.name()))?;
        values.push((key, value));
    }
    Ok(values)
}

fn differs(before: &[(Key, String)], after: &[(Key, String)]) -> Shown {
    if before == after {
        Err("a fresh SELECT gives what it gave before".to_owned())
    } else {
        Ok(())
    }
}

/// Somebody has a table for himself; or waits for it behind a long SELECT, and all others behind
/// him.
async fn lock(world: &World, planned: Planned) -> Shown {
    let table = planned.table();
    let text = |error: tokio_postgres::Error| error.to_string();
    let take = format!("lock table {table} in access exclusive mode");
    let first = world.servers.sql().await.map_err(text)?;
    let mut second = None;
    if planned.kind == Kind::LockHeld {
        first.batch_execute("begin; set local lock_timeout = '60s'").await.map_err(text)?;
        first.batch_execute(&take).await.map_err(text)?;
    } else {
        first.batch_execute(&format!("begin; select from {table} limit 1")).await.map_err(text)?;
        let waiting = world.servers.sql().await.map_err(text)?;
        let take = format!("begin; {take}; rollback");
        second = Some(tokio::spawn(async move { waiting.batch_execute(&take).await }));
    }
    let shown = is_refused(world, table).await;
    sleep(planned.lasts * 4).await;
    let still = is_refused(world, table).await;
    first.batch_execute("rollback").await.map_err(text)?;
    if let Some(second) = second {
        let done = timeout(PATIENCE, second).await;
        done.map_err(|_late| "the queued lock was never had".to_owned())?.unwrap().map_err(text)?;
    }
    shown.and(still)
}

/// Whether a SELECT on the table waits for a lock.
async fn is_refused(world: &World, table: &str) -> Shown {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let sql: Client = world.servers.sql().await.map_err(|error| error.to_string())?;
        sql.batch_execute(MOMENT).await.map_err(|error| error.to_string())?;
        let asked = sql.batch_execute(&format!("select from {table} limit 1")).await;
        match asked {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => return Ok(()),
            // The one that queues has not come so far yet.
            _ if Instant::now() < deadline => sleep(RETRY).await,
            _ => return Err(format!("`{table}` is not locked")),
        }
    }
}

/// Changes what every page shows, and no row is sent.
async fn read_otherwise(world: &World, planned: Planned) -> Shown {
    match planned.kind {
        Kind::DdlConvert => {
            let change = if planned.choice.is_multiple_of(2) { "upper" } else { "lower" };
            write(world, vec![NAME_READING], |version| {
                format!(
                    "alter table page alter column name type text
                         using {change}(split_part(name, '#', 1)) || '#{version}'"
                )
            })
            .await;
        }
        Kind::DdlColumn => {
            let query = "select attname::text from pg_attribute
                          where attrelid = 'page'::regclass and attname like 'note%'
                            and not attisdropped";
            let old = fact(world, query).await?;
            write(world, vec![NOTE_READING], |version| {
                format!(
                    "alter table page drop column {old},
                         add column note_{version} bigint not null default {version}"
                )
            })
            .await;
        }
        _ => {
            let old = mood(world).await?;
            write(world, vec![MOOD_READING], |version| {
                format!("alter type mood rename value '{old}' to 'm{version}'")
            })
            .await;
        }
    }
    Ok(())
}

async fn mood(world: &World) -> Result<String, String> {
    fact(world, "select enumlabel::text from pg_enum where enumtypid = 'mood'::regtype").await
}

/// A domain gets a constraint for a while. What is read stays the same.
async fn constrain(world: &World, planned: Planned) -> Shown {
    apply(world, "alter domain code add constraint short check (length(value) < 100)").await;
    let query = "select count(*)::text from pg_constraint where contypid = 'code'::regtype";
    let shown = expect(world, query, "1").await;
    sleep(planned.lasts).await;
    world.shared.history.trouble_goes_on(scope(planned));
    apply(world, "alter domain code drop constraint short").await;
    shown
}

/// For a while changes do not tell on which shelf a page was.
async fn forget_identity(world: &World, planned: Planned) -> Shown {
    apply(world, "alter table page replica identity default").await;
    let query = "select relreplident::text from pg_class where oid = 'page'::regclass";
    let shown = expect(world, query, "d").await;
    let (first, last) = (SHELVES.start(), SHELVES.end());
    write(world, pages(), |version| {
        format!(
            "update page set shelf = case shelf when {last} then {first} else shelf + 1 end,
                             version = {version}"
        )
    })
    .await;
    sleep(planned.lasts * 2).await;
    world.shared.history.trouble_goes_on(scope(planned));
    apply(world, "alter table page replica identity full").await;
    shown.and(expect(world, query, "f").await)
}

/// A table, an operation or the publication is not there while something changes.
async fn hide(world: &World, planned: Planned) -> Shown {
    let (gone, back) = match planned.choice % 3 {
        0 => (
            "alter publication walsweep drop table page",
            "alter publication walsweep add table page",
        ),
        1 => (
            "alter publication walsweep set (publish = 'insert')",
            "alter publication walsweep set (publish = 'insert, update, delete, truncate')",
        ),
        _ => ("drop publication walsweep", PUBLICATION.trim().trim_end_matches(';')),
    };
    let query = "select coalesce(string_agg(concat_ws(' ', pubname, pubupdate, tablename), ','
                                           order by tablename), '')
                   from pg_publication left join pg_publication_tables using (pubname)";
    let before = fact(world, query).await?;
    apply(world, gone).await;
    let shown = if fact(world, query).await? == before {
        Err("what is published is the same".to_owned())
    } else {
        Ok(())
    };
    write(world, pages(), |version| format!("update page set version = {version}")).await;
    if !planned.choice.is_multiple_of(3) {
        let (first, last) = (PHANTOMS.start(), PHANTOMS.end());
        write(world, PHANTOMS.collect(), |version| {
            format!("update item set version = {version} where id between {first} and {last}")
        })
        .await;
    }
    sleep(planned.lasts * 3).await;
    world.shared.history.trouble_goes_on(scope(planned));
    apply(world, back).await;
    shown.and(expect(world, query, &before).await)
}

/// The event trigger is disabled while the materialized view is refreshed.
async fn miss_refresh(world: &World, planned: Planned) -> Shown {
    world.shared.narrow.store(true, Ordering::Relaxed);
    let owned = timeout(PATIENCE, world.shared.own_all([STAT])).await;
    let _owned = owned.map_err(|_late| "the view is never free".to_owned())?;
    sleep(world.shared.window * 5 / 4).await;
    let before = prime(world).await?;
    let trigger = "walsweep_refresh";
    let query = "select evtenabled::text from pg_event_trigger where evtname = 'walsweep_refresh'";
    let known = expect(world, query, "A").await;
    world.shared.history.trouble_begins(scope(planned));
    apply(world, &format!("alter event trigger {trigger} disable")).await;
    write(world, vec![STAT], |version| {
        format!("update seed set version = {version}; refresh materialized view stat")
    })
    .await;
    let shown = expect(world, query, "D").await;
    let other = differs(&before, &current(world).await?);
    sleep(planned.lasts * 2).await;
    world.shared.history.trouble_goes_on(scope(planned));
    apply(world, &format!("alter event trigger {trigger} enable always")).await;
    known.and(shown).and(other)
}

/// A partition goes with its rows, and comes back with others.
async fn detach(world: &World, planned: Planned) -> Shown {
    world.shared.narrow.store(true, Ordering::Relaxed);
    let rows: Vec<i32> = SECOND_PARTS.collect();
    let owned = timeout(PATIENCE, world.shared.own_all(rows.clone())).await;
    let _owned = owned.map_err(|_late| "the rows are never free".to_owned())?;
    sleep(world.shared.window * 5 / 4).await;
    let before = prime(world).await?;
    world.shared.history.trouble_begins(scope(planned));
    write(world, rows.clone(), |_| "alter table part detach partition part_b".to_owned()).await;
    let without = prime(world).await?;
    sleep(planned.lasts * 2).await;
    world.shared.history.trouble_goes_on(scope(planned));
    let (first, last) = (SECOND_PARTS.start(), SECOND_PARTS.end() + 1);
    write(world, rows, |version| {
        format!(
            "update part_b set version = {version};
             alter table part attach partition part_b for values from ({first}) to ({last})"
        )
    })
    .await;
    differs(&before, &without).and(differs(&without, &current(world).await?))
}

/// Longer than the longest pause between two looks at the tables, and such a look.
const HEIR_STAYS: Duration = Duration::from_secs(13);

/// Another table inherits from a rule's, and with it a row; later it goes.
async fn inherit(world: &World, planned: Planned, before: &[(Key, String)]) -> Shown {
    let first = PAGES.start();
    write(world, vec![CHILD_PAGE], |version| {
        format!(
            "create table page_child () inherits (page);
             insert into page_child
             select (jsonb_populate_record(null::page_child, to_jsonb(page)
                         || '{{\"id\": {CHILD_PAGE}, \"version\": {version}}}')).*
               from only page where id = {first}"
        )
    })
    .await;
    let with = prime(world).await?;
    // When it is gone, nothing in the catalog tells that it was there: so it stays until a look.
    sleep(HEIR_STAYS.max(planned.lasts * 3)).await;
    world.shared.history.trouble_goes_on(scope(planned));
    write(world, vec![CHILD_PAGE], |_| "drop table page_child".to_owned()).await;
    differs(before, &with).and(differs(&with, &current(world).await?))
}

/// A table is built beside a rule's and takes its name, as tools that build tables from queries do
/// it. Only later somebody publishes it.
async fn swap(world: &World, planned: Planned) -> Shown {
    let query = "select 'page'::regclass::oid::text";
    let before = fact(world, query).await?;
    let publish = "alter table page replica identity full;
                   alter publication walsweep add table page";
    let at_once = planned.choice.is_multiple_of(3);
    write(world, pages(), |version| {
        let publish = if at_once { publish } else { "select 1" };
        format!(
            "create table page_new (like page including all);
             insert into page_new select * from page;
             update page_new set version = {version};
             alter table page rename to page_old;
             alter table page_new rename to page;
             drop table page_old; {publish}"
        )
    })
    .await;
    let after = fact(world, query).await?;
    if !at_once {
        write(world, pages(), |version| format!("update page set version = {version}")).await;
        sleep(planned.lasts * 3).await;
        world.shared.history.trouble_goes_on(scope(planned));
        apply(world, publish).await;
    }
    if before == after { Err("`page` is the table that it was".to_owned()) } else { Ok(()) }
}

/// A rule's table is dropped, and later restored with other rows.
async fn drop_and_restore(world: &World, planned: Planned) -> Shown {
    let mood = mood(world).await?;
    let query = "select to_regclass('page')::text";
    write(world, pages(), |_| "drop table page".to_owned()).await;
    let shown = expect(world, query, "").await;
    sleep(planned.lasts * 4).await;
    world.shared.history.trouble_goes_on(scope(planned));
    let rows = pages_with_readings().into_iter().filter(|row| *row != MOOD_READING).collect();
    write(world, rows, |version| {
        let create = create_page(version, &mood);
        format!("{create} alter publication walsweep add table page")
    })
    .await;
    shown.and(expect(world, query, "page").await)
}

impl Planned {
    /// The table that a lock is on.
    pub(crate) fn table(&self) -> &'static str {
        LOCKABLE[usize::try_from(self.choice).unwrap_or(0) % LOCKABLE.len()]
    }
}
