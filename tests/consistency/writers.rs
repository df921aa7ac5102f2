//! Writers that give rows new versions in every shape that a transaction has.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::SinkExt;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use crate::cached::connect;
use crate::schema::{
    FIRST_PARTS, FLASHES, HOT_ITEMS, ITEMS, LABELS, PAGES, SECOND_PARTS, SHELVES, STAT, TEAMS,
    label_name, slug_name, team_name,
};
use crate::shared::{Owned, RETRY, Shared};

/// The kind of work that a transaction does.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Single,
    Multi,
    Savepoint,
    Bulk,
    Delete,
    Insert,
    Move,
    Regroup,
    Copy,
    Truncate,
    Flash,
    /// A row that keys need a lookup for, on the same shelf or another.
    Page,
    /// A row that a lookup reads, with the same label or another.
    Relabel,
    /// A row of a partition.
    Part,
    /// A materialized view.
    Refresh,
}

/// Every shape, with how often it comes up.
const SHAPES: [(Shape, u32); 15] = [
    (Shape::Single, 48),
    (Shape::Multi, 10),
    (Shape::Savepoint, 8),
    (Shape::Bulk, 2),
    (Shape::Delete, 4),
    (Shape::Insert, 7),
    (Shape::Move, 4),
    (Shape::Regroup, 7),
    (Shape::Copy, 3),
    (Shape::Truncate, 2),
    (Shape::Flash, 5),
    (Shape::Page, 6),
    (Shape::Relabel, 2),
    (Shape::Part, 5),
    (Shape::Refresh, 1),
];

/// How long a writer waits for a table that somebody else locked, before it writes another one.
const PATIENCE: &str = "set lock_timeout = '100ms'";

/// Statements, and the rows that have the new version once they are committed.
struct Change {
    statements: String,
    rows: Vec<i32>,
    version: u64,
    owned: Owned,
}

/// A transaction that was prepared and waits for its end.
struct Prepared {
    name: String,
    change: Change,
    due: Instant,
    commit: bool,
}

struct Writer {
    shared: Arc<Shared>,
    random: StdRng,
    number: u64,
    prepared: Option<Prepared>,
    prepared_count: u64,
}

/// Writes until the run is over.
pub(crate) async fn write(shared: Arc<Shared>, number: u64) {
    let random = shared.random(1, number);
    let own = Arc::clone(&shared);
    let mut writer = Writer { shared: own, random, number, prepared: None, prepared_count: 0 };
    // Kept from PREPARE to the end of the transaction: what stays prepared at a quiet point would
    // be waited for, rightly, by every sweep that begins then.
    let mut turn = None;
    while !shared.stopped() {
        let Ok(client) = connect(&shared.postgres_url).await else {
            sleep(RETRY).await;
            continue;
        };
        if client.batch_execute(PATIENCE).await.is_err() {
            continue;
        }
        while !shared.stopped() && !client.is_closed() {
            if turn.is_none() {
                turn = Some(shared.writing.read().await);
            }
            if writer.turn(&client).await.is_err() {
                // What the server refused is taken back; a connection that is lost shows above.
                drop(client.batch_execute("rollback").await);
            }
            if writer.prepared.is_none() {
                turn = None;
            }
            if writer.random.random_range(0..8) == 0 {
                sleep(Duration::from_millis(writer.random.random_range(1..10))).await;
            }
        }
    }
}

impl Writer {
    async fn turn(&mut self, client: &Client) -> Result<(), Error> {
        if let Some(prepared) = self.prepared.take_if(|one| one.due <= Instant::now()) {
            return self.end(client, prepared).await;
        }
        let total: u32 = SHAPES.iter().map(|(_, weight)| weight).sum();
        let mut ticket = self.random.random_range(0..total);
        let shape = SHAPES.iter().find(|(_, weight)| {
            let is_it = ticket < *weight;
            ticket = ticket.saturating_sub(*weight);
            is_it
        });
        let Some((shape, _)) = shape else { return Ok(()) };
        let Some(change) = self.change(*shape) else {
            tokio::task::yield_now().await;
            return Ok(());
        };
        if matches!(shape, Shape::Copy) {
            return self.copy(client, change).await;
        }
        // A prepared TRUNCATE or REFRESH would keep readers waiting for as long as it is prepared.
        let excludes = matches!(shape, Shape::Truncate | Shape::Refresh);
        let may_prepare = self.prepared.is_none() && !excludes;
        if may_prepare && self.random.random_range(0..20) == 0 {
            return self.prepare(client, change).await;
        }
        let durability = match self.random.random_range(0..20) {
            0 => "set local synchronous_commit = off; ",
            1 => "set local synchronous_commit = local; ",
            _ => "",
        };
        let Change { statements, .. } = &change;
        client.batch_execute(&format!("begin; {durability}{statements} commit")).await?;
        self.shared.committed(&change.rows, change.version);
        Ok(())
    }

    fn is_narrow(&self) -> bool {
        self.shared.narrow.load(Ordering::Relaxed)
    }

    /// An item: half of them are hot.
    fn item(&mut self) -> i32 {
        let hot = self.is_narrow() || self.random.random_range(0..2) == 0;
        let most = if hot { HOT_ITEMS } else { ITEMS };
        self.random.random_range(1..=most)
    }

    fn items(&mut self, count: usize) -> Vec<i32> {
        let mut ids: Vec<i32> = (0..count).map(|_| self.item()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn place(&mut self) -> (String, String) {
        let (team, slug) =
            (self.random.random_range(0..TEAMS), self.random.random_range(1..=ITEMS));
        (team_name(team), slug_name(slug))
    }

    /// The statements of a shape; `None` where another writer has the rows.
    fn change(&mut self, shape: Shape) -> Option<Change> {
        let ids = match shape {
            Shape::Single | Shape::Delete | Shape::Insert | Shape::Regroup => self.items(1),
            Shape::Multi | Shape::Copy => self.items(4),
            Shape::Savepoint => self.items(3),
            Shape::Bulk => self.items(24),
            Shape::Move => self.items(2),
            Shape::Truncate | Shape::Flash if self.is_narrow() => return None,
            Shape::Page | Shape::Relabel | Shape::Part | Shape::Refresh if self.is_narrow() => {
                return None;
            }
            Shape::Truncate => FLASHES.collect(),
            Shape::Flash => vec![self.random.random_range(FLASHES)],
            Shape::Page => vec![self.random.random_range(PAGES)],
            Shape::Relabel => vec![self.random.random_range(SHELVES)],
            Shape::Part => {
                vec![self.random.random_range(*FIRST_PARTS.start()..=*SECOND_PARTS.end())]
            }
            Shape::Refresh => vec![STAT],
        };
        let owned = self.shared.own(&ids)?;
        let version = self.shared.next_version();
        let list: Vec<String> = ids.iter().map(i32::to_string).collect();
        let list = list.join(", ");
        let mut rows = ids.clone();
        let statements = match shape {
            Shape::Single | Shape::Multi => {
                format!("update item set version = {version} where id in ({list});")
            }
            Shape::Savepoint => nested(&ids, &mut rows, version),
            Shape::Bulk => bulk(&ids, version),
            Shape::Delete | Shape::Copy => format!("delete from item where id in ({list});"),
            Shape::Insert => {
                let (team, slug) = self.place();
                format!(
                    "insert into item values ({list}, '{team}', '{slug}', {version})
                     on conflict (id) do update set version = excluded.version;"
                )
            }
            Shape::Regroup => {
                let (team, slug) = self.place();
                format!(
                    "update item set team = '{team}', slug = '{slug}', version = {version}
                      where id = {list};"
                )
            }
            Shape::Move => {
                let (&from, &to) = (ids.first()?, ids.get(1)?);
                // Refused if there is no such item, or one with the new id: a change that changes
                // nothing must not count as one.
                format!(
                    "select 1 / (select count(*) from item where id = {from});
                     update item set id = {to}, version = {version} where id = {from};"
                )
            }
            Shape::Truncate if self.random.random_range(0..2) == 0 => "truncate flash;".to_owned(),
            Shape::Truncate => format!("truncate flash; {}", flashes(&ids, version)),
            Shape::Flash => flashes(&ids, version),
            Shape::Page | Shape::Relabel | Shape::Part | Shape::Refresh => {
                self.defined(shape, &list, version)
            }
        };
        Some(Change { statements, rows, version, owned })
    }

    /// A change of a table whose definition changes, too, now and then.
    fn defined(&mut self, shape: Shape, id: &str, version: u64) -> String {
        let moves = self.random.random_range(0..4) == 0;
        let shelf = self.random.random_range(SHELVES);
        let (table, change) = match shape {
            Shape::Refresh => {
                return format!(
                    "update seed set version = {version}; refresh materialized view stat;"
                );
            }
            Shape::Relabel => {
                let label = label_name(self.random.random_range(0..LABELS));
                ("shelf", if moves { format!(", label = '{label}'") } else { String::new() })
            }
            Shape::Part => {
                ("part", if moves { format!(", shelf = {shelf}") } else { String::new() })
            }
            _ => ("page", if moves { format!(", shelf = {shelf}") } else { String::new() }),
        };
        format!("update {table} set version = {version}{change} where id = {id};")
    }

    /// Deletes items and brings them back by COPY, in one transaction.
    async fn copy(&mut self, client: &Client, change: Change) -> Result<(), Error> {
        client.batch_execute(&format!("begin; {}", change.statements)).await?;
        let mut lines = String::new();
        for id in &change.rows {
            let (team, slug) = self.place();
            let line = format!("{id}\t{team}\t{slug}\t{}\n", change.version);
            lines.push_str(&line);
        }
        let sink = client.copy_in("copy item from stdin").await?;
        let mut sink = std::pin::pin!(sink);
        sink.send(bytes::Bytes::from(lines)).await?;
        sink.as_mut().finish().await?;
        client.batch_execute("commit").await?;
        self.shared.committed(&change.rows, change.version);
        Ok(())
    }

    /// First half of a two-phase commit. The rows stay this writer's until the second.
    async fn prepare(&mut self, client: &Client, change: Change) -> Result<(), Error> {
        self.prepared_count += 1;
        let name = format!("w{}-{}", self.number, self.prepared_count);
        let statements = format!("begin; {} prepare transaction '{name}'", change.statements);
        let is_long = self.random.random_range(0..8) == 0;
        let pause_ms = self.random.random_range(0..if is_long { 4000 } else { 30 });
        let due = Instant::now() + Duration::from_millis(pause_ms);
        let commit = self.random.random_range(0..4) != 0;
        let prepared = client.batch_execute(&statements).await;
        match &prepared {
            Ok(()) => self.prepared = Some(Prepared { name, change, due, commit }),
            // It may be prepared or not: its end tells.
            Err(error) if error.as_db_error().is_none() => {
                self.prepared = Some(Prepared { name, change, due, commit: false });
            }
            Err(_) => {}
        }
        prepared
    }

    /// Second half.
    async fn end(&mut self, client: &Client, prepared: Prepared) -> Result<(), Error> {
        let word = if prepared.commit { "commit" } else { "rollback" };
        let ended = client.batch_execute(&format!("{word} prepared '{}'", prepared.name)).await;
        match &ended {
            Ok(()) if prepared.commit => {
                let Change { rows, version, owned, .. } = prepared.change;
                self.shared.committed(&rows, version);
                drop(owned);
            }
            // It was never prepared, or had been ended although nobody said so.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {}
            // The server is away; it knows the transaction when it comes back.
            Err(_) => self.prepared = Some(prepared),
            Ok(()) => {}
        }
        ended
    }
}

/// The first row for good, the second taken back, the third for good.
fn nested(ids: &[i32], rows: &mut Vec<i32>, version: u64) -> String {
    let mut statements = String::new();
    rows.clear();
    for (at, id) in ids.iter().enumerate() {
        let update = format!("update item set version = {version} where id = {id};");
        if at == 1 {
            write!(statements, "savepoint a; {update} rollback to a;").unwrap();
        } else {
            write!(statements, "savepoint b; {update} release b;").unwrap();
            rows.push(*id);
        }
    }
    statements
}

/// Each row in a subtransaction of its own.
fn bulk(ids: &[i32], version: u64) -> String {
    let mut statements = String::new();
    for id in ids {
        let update = format!("update item set version = {version} where id = {id};");
        write!(statements, "savepoint a; {update} release a;").unwrap();
    }
    statements
}

fn flashes(ids: &[i32], version: u64) -> String {
    let rows: Vec<String> = ids.iter().map(|id| format!("({id}, {version})")).collect();
    format!(
        "insert into flash values {} on conflict (id) do update set version = excluded.version;",
        rows.join(", ")
    )
}
