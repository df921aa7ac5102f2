//! The catalog as the checks see it: one statement for the server, one for the tables.

use serde::Deserialize;
use serde_json::{Map, Value};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::Error;
use super::memory::Memory;
use crate::config::{Config, Operations, Postgres, TableName};
use crate::keys::Rules;
use crate::postgres::statement::render;

/// The backend that answered, and its `server_version_num`.
pub(super) async fn server(client: &Client) -> Result<(i32, i32), Error> {
    let row = client.query_one(include_str!("../../sql/preflight_server.sql"), &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// A number that is another one when `sql/preflight_tables.sql` has another answer.
pub(super) async fn digest(
    config: &Config,
    rules: &Rules,
    client: &Client,
) -> Result<String, tokio_postgres::Error> {
    let query = digest_of(&tables_query());
    tables(config, rules, client, &query, false).await?.try_get(0)
}

async fn tables(
    config: &Config,
    rules: &Rules,
    client: &Client,
    query: &str,
    advice: bool,
) -> Result<Row, tokio_postgres::Error> {
    let (schemas, names) = names(rules.tables());
    let Postgres { publication, replication_endpoint, .. } = &config.postgres;
    let user = &replication_endpoint.user;
    let values: [&(dyn ToSql + Sync); 5] = [&schemas, &names, publication, &advice, user];
    of_many(client, names.len(), client.query_one(query, &values)).await
}

/// Gives the answer to what is `asked` over `client` of so many `tables`, planned for as many as
/// they are. Asks in a transaction of its own, so that the session is afterwards as it was.
///
/// # Errors
///
/// The question's.
pub(crate) async fn of_many<T>(
    client: &Client,
    tables: usize,
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, tokio_postgres::Error> {
    client.batch_execute("begin").await?;
    let tables = i64::try_from(tables).unwrap_or(i64::MAX);
    let planned = client.query(include_str!("../../sql/plan_many.sql"), &[&tables]).await;
    let answer = match planned {
        Ok(_settings) => asked.await,
        Err(error) => Err(error),
    };
    let ended = client.batch_execute("rollback").await;
    let answer = answer?;
    ended?;
    Ok(answer)
}

fn tables_query() -> String {
    with_published(include_str!("../../sql/preflight_tables.sql"))
}

/// A question for a number that is another one when `question` has other rows.
pub(crate) fn digest_of(question: &str) -> String {
    render(include_str!("../../sql/digest.sql"), &[("question", question)])
}

/// A question with `sql/published.sql` in it.
pub(crate) fn with_published(file: &str) -> String {
    let published = render(include_str!("../../sql/published.sql"), &[]);
    render(file, &[("published", published.trim())])
}

/// Schemas and names, as questions take them.
pub(crate) fn names<'a>(
    tables: impl Iterator<Item = &'a TableName>,
) -> (Vec<&'a str>, Vec<&'a str>) {
    tables.map(|table| (table.schema.as_str(), table.name.as_str())).unzip()
}

/// The answers of `sql/preflight.sql` and `sql/preflight_tables.sql`.
#[derive(Debug, Deserialize)]
pub(super) struct Catalog {
    pub(super) backend_pid: i32,
    pub(super) database: String,
    pub(super) is_in_recovery: bool,
    pub(super) wal_level: String,
    pub(super) version: i32,
    pub(super) slot_keep_size: Option<String>,
    /// `idle_replication_slot_timeout` in seconds, 0 for never; `None` before version 18.
    pub(super) idle_slot_timeout: Option<i64>,
    /// Slots that `synchronized_standby_slots` names and no standby streams from.
    pub(super) absent_standbys: Vec<String>,
    pub(super) synchronous_commit: Option<String>,
    /// Who has it off: roles by name, with or without a database.
    pub(super) asynchronous: Vec<String>,
    /// Whether walsweep's role may call `pg_log_standby_snapshot()`; `None` before version 16.
    pub(super) may_log_snapshot: Option<bool>,
    pub(super) slots_max: i64,
    pub(super) slots_used: i64,
    pub(super) senders_max: i64,
    pub(super) senders_used: i64,
    /// The role of the replication connection; `None`: there is none of that name yet.
    pub(super) role: Option<Role>,
    /// Who asks.
    pub(super) user: String,
    /// Whether that is a superuser.
    pub(super) is_superuser: bool,
    /// The administrators' role by which a managed service is known.
    pub(super) service: Option<String>,
    pub(super) prepared: Prepared,
    pub(super) slot: Option<Slot>,
    /// This database's slots.
    pub(super) slots: Vec<Other>,
    pub(super) publication: Option<Publication>,
    pub(super) tables: Vec<Table>,
    pub(super) other_tables: Vec<Name>,
    /// Tables of the publication that no rule names and that could not be written to any more if it
    /// published updates and deletes, some of them.
    pub(super) unidentified: Vec<String>,
}

/// The role of the replication connection.
#[derive(Debug, Deserialize)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) may_replicate: bool,
    pub(super) is_rds: bool,
}

/// The transactions that `pg_prepared_xacts` lists, of all databases.
#[derive(Debug, Deserialize)]
pub(super) struct Prepared {
    pub(super) count: u64,
    /// Since when the oldest is prepared.
    pub(super) seconds: i64,
}

/// A row of `pg_replication_slots`
/// (<https://www.postgresql.org/docs/current/view-pg-replication-slots.html>).
#[derive(Debug, Deserialize)]
pub(super) struct Slot {
    pub(super) plugin: Option<String>,
    pub(super) database: Option<String>,
    pub(super) temporary: bool,
    pub(super) active_pid: Option<i32>,
    pub(super) wal_status: Option<String>,
    #[serde(default)]
    pub(super) two_phase: Option<bool>,
    /// Whether recovery took it away; `None` before version 16.
    #[serde(default)]
    pub(super) conflicting: Option<bool>,
    /// Whether it is a copy of the primary's; `None` before version 17.
    #[serde(default)]
    pub(super) synced: Option<bool>,
    /// Why it is lost; `None` before version 17.
    #[serde(default)]
    pub(super) invalidation_reason: Option<String>,
    /// Whether standbys may keep a copy; `None` before version 17.
    #[serde(default)]
    pub(super) failover: Option<bool>,
}

/// A slot of whatever name.
#[derive(Debug, Deserialize)]
pub(super) struct Other {
    pub(super) name: String,
    /// Whether somebody reads it.
    pub(super) active: bool,
    /// The WAL that it keeps, in bytes; `None` if it is lost.
    pub(super) kept: Option<i64>,
}

/// A row of `pg_publication`
/// (<https://www.postgresql.org/docs/current/catalog-pg-publication.html>).
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the columns of the catalog")]
pub(super) struct Publication {
    pub(super) puballtables: bool,
    pub(super) pubinsert: bool,
    pub(super) pubupdate: bool,
    pub(super) pubdelete: bool,
    pub(super) pubtruncate: bool,
    pub(super) pubviaroot: bool,
    /// Which generated columns are published; `None` before version 18, which publishes none.
    #[serde(default)]
    pub(super) pubgencols: Option<String>,
    /// Whose it is.
    pub(super) owner: String,
    /// Whether that is a superuser.
    pub(super) owner_is_superuser: bool,
    /// Whether that has the rights of the owner of one of the rules' tables.
    pub(super) owner_owns: bool,
    /// The comment on it, which tells whether `setup` made it.
    pub(super) comment: Option<String>,
}

impl Publication {
    /// Gives what `setup` remembers of it; `None` if it did not make it, or the comment is damaged.
    pub(super) fn memory(&self) -> Option<Memory> {
        Memory::read(self.comment.as_deref())
    }

    /// The operations that it publishes.
    pub(super) fn operations(&self) -> Operations {
        Operations {
            insert: self.pubinsert,
            update: self.pubupdate,
            delete: self.pubdelete,
            truncate: self.pubtruncate,
        }
    }
}

/// A table that a rule names.
#[derive(Debug, Deserialize)]
pub(super) struct Table {
    pub(super) relation: Relation,
    pub(super) columns: Vec<Column>,
    /// The leaves, if it is partitioned.
    pub(super) partitions: Vec<Relation>,
    /// A table that inherits from it, is no partition, and is named by no rule.
    pub(super) heir: Option<String>,
    /// The partitioned table under whose name its changes are published.
    pub(super) published_as: Option<String>,
    /// Whether the publication names it, or a table that it is a partition of.
    pub(super) is_listed: bool,
    /// The columns that are published; `None` before version 15, which knows no column lists.
    pub(super) published_columns: Option<Vec<String>>,
    /// Whether the publication has a column list for it, be it of all columns.
    pub(super) has_column_list: bool,
    /// Whether only some of its rows are published.
    pub(super) has_row_filter: bool,
    /// Another publication with which the server would refuse UPDATE and DELETE of the table, or of
    /// a partition, once its identity is full.
    pub(super) full_refused: Option<FullRefused>,
}

/// Another publication that has a table in a way that a full identity does not go with.
#[derive(Debug, Deserialize)]
pub(super) struct FullRefused {
    pub(super) publication: String,
    /// The table or the partition, with its schema.
    pub(super) name: String,
    /// A stored generated column that it leaves out; `None`: it has a column list.
    pub(super) column: Option<String>,
}

/// A row of `pg_class`.
#[derive(Debug, Deserialize)]
pub(super) struct Relation {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) kind: char,
    pub(super) persistence: char,
    pub(super) identity: char,
    /// The columns of the identity's index; none if there is no such index.
    pub(super) identity_columns: Vec<String>,
    /// The name of that index.
    pub(super) identity_index: Option<String>,
    /// Whether its changes are published under its own name.
    pub(super) is_published: bool,
}

/// A column of a table.
#[derive(Debug, Deserialize)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) is_generated: bool,
    /// Whether it is generated and not stored (version 18).
    pub(super) is_virtual: bool,
    /// `pg_type.oid`; of a domain the one that it is made of.
    pub(super) type_id: u32,
}

/// The name of a table.
#[derive(Debug, Deserialize)]
pub(super) struct Name {
    pub(super) schema: String,
    pub(super) name: String,
}

impl Catalog {
    /// Reads it; `advice` says whether to read the names of other tables, too.
    pub(super) async fn read(
        config: &Config,
        rules: &Rules,
        client: &Client,
        advice: bool,
    ) -> Result<Catalog, Error> {
        let query = include_str!("../../sql/preflight.sql");
        let server = client.query_one(query, &[&config.postgres.slot]).await?;
        let mut parts: Map<String, Value> = serde_json::from_str(server.try_get(0)?)?;
        let tables = tables(config, rules, client, &tables_query(), advice).await?;
        parts.extend(serde_json::from_str::<Map<String, Value>>(tables.try_get(0)?)?);
        Ok(serde_json::from_value(Value::Object(parts))?)
    }

    /// The table of that name.
    pub(super) fn table(&self, name: &TableName) -> Option<&Table> {
        let is_it = |table: &&Table| {
            (&table.relation.schema, &table.relation.name) == (&name.schema, &name.name)
        };
        self.tables.iter().find(is_it)
    }
}

impl Table {
    /// Whether it is partitioned.
    pub(super) fn is_partitioned(&self) -> bool {
        self.relation.kind == 'p'
    }

    /// Whether Postgres takes it into a publication.
    pub(super) fn is_publishable(&self) -> bool {
        matches!(self.relation.kind, 'r' | 'p') && self.relation.persistence == 'p'
    }

    /// Every relation whose identity counts: its own, for the names of the columns, and those of
    /// the partitions, for what the log holds.
    pub(super) fn family(&self) -> impl Iterator<Item = &Relation> {
        std::iter::once(&self.relation).chain(&self.partitions)
    }

    /// The relations whose changes are in the log.
    pub(super) fn holders(&self) -> impl Iterator<Item = &Relation> {
        self.family().filter(|relation| relation.is_logged())
    }

    /// Whether the old value of a column is in the log, whichever partition its row is in. Of one
    /// without any identity no row is ever updated or deleted while it is published.
    pub(super) fn identifies(&self, column: &str) -> bool {
        let is_known = |one: &Relation| one.identifies(column) || !one.has_identity();
        let mut logged = self.partitions.iter().filter(|one| one.is_logged());
        self.relation.identifies(column) && logged.all(is_known)
    }
}

impl Relation {
    /// Whether it holds rows, and the log has their changes: not of a foreign table, nor of one
    /// that is unlogged or temporary.
    pub(super) fn is_logged(&self) -> bool {
        self.kind == 'r' && self.persistence == 'p'
    }

    /// Whether its replica identity counts: that of a partitioned table for the names of the
    /// columns, that of what is in the log for what the log has.
    pub(super) fn counts(&self) -> bool {
        self.kind == 'p' || self.is_logged()
    }

    /// Whether the replica identity has the column.
    pub(super) fn identifies(&self, column: &str) -> bool {
        self.identity == 'f' || self.identity_columns.iter().any(|one| one == column)
    }

    /// Whether there is a replica identity.
    pub(super) fn has_identity(&self) -> bool {
        self.identity == 'f' || !self.identity_columns.is_empty()
    }
}
