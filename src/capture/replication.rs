//! The replication commands
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>).

use std::str::FromStr;

use postgres_protocol::escape::escape_identifier;

use super::connection::{Connection, Row};
use super::{Error, Malformed, Slot, login};
use crate::lsn::Lsn;
use crate::postgres::{
    BACKEND, Endpoint, History, IN_RECOVERY, Login, PassedOver, Search, begin, within,
};

/// Which server this is, and how far its log goes: the answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The history that it sends.
    pub history: History,
    /// The end of the flushed log.
    pub xlogpos: Lsn,
}

/// One run of a server, from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whether it is a standby at the moment.
    pub in_recovery: bool,
    /// Tells it from other runs, and from those of other servers.
    pub id: String,
}

/// Requests to the stream beyond the changes of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether messages of `pg_logical_emit_message` are sent. On by default.
    pub messages: bool,
    /// Whether large transactions are sent while they run. Off by default.
    pub streaming: Streaming,
}

impl Default for StreamOptions {
    fn default() -> StreamOptions {
        StreamOptions { messages: true, streaming: Streaming::Off }
    }
}

/// How transactions are sent that outgrow the server's `logical_decoding_work_mem`, and by which
/// version of pgoutput's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// Whole, at their commit: version 1.
    Off,
    /// In blocks while they run: version 2, Postgres 14 and later.
    On,
    /// In blocks while they run, and an abort tells where it happened: version 4, Postgres 16 and
    /// later.
    Parallel,
}

impl Streaming {
    /// Gives the most that a server of this `server_version_num` can do.
    #[must_use]
    pub fn of_server(version_num: i32) -> Streaming {
        match version_num {
            ..140_000 => Streaming::Off,
            140_000..160_000 => Streaming::On,
            160_000.. => Streaming::Parallel,
        }
    }

    fn options(self) -> &'static str {
        match self {
            Streaming::Off => "proto_version '1'",
            Streaming::On => "proto_version '2', streaming 'on'",
            Streaming::Parallel => "proto_version '4', streaming 'parallel'",
        }
    }
}

/// The fate of a slot when a standby is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// It is not there.
    Plain,
    /// It is, if the standby keeps a copy. Needs Postgres 17
    /// (<https://www.postgresql.org/docs/current/logicaldecoding-explanation.html>).
    Failover,
}

/// A session in replication mode that does not stream yet.
pub struct Replication {
    connection: Connection,
}

impl Replication {
    /// Connects in replication mode, logs in, and brings the session into the state that
    /// `sql/session.sql` lists: keys are made of values as text, the same text whatever the role's
    /// settings are. `application_name` is what `pg_stat_replication` shows.
    ///
    /// # Errors
    /// See [`postgres::Error`](crate::postgres::Error), and [`Error::is_pooler`]; the whole attempt
    /// is bounded by [`Endpoint::connect_timeout`]. Of several hosts it is the first that is a
    /// primary, each within that time.
    pub async fn connect(
        endpoint: &Endpoint,
        application_name: &str,
    ) -> Result<Replication, Error> {
        Replication::find(endpoint, application_name, None).await
    }

    /// Like [`Replication::connect`], but takes of several hosts the primary of this history:
    /// another URL may name the same server by another address, and a second one that calls itself
    /// the primary.
    ///
    /// # Errors
    /// As for [`Replication::connect`]. One host alone is not compared.
    pub async fn connect_to(
        endpoint: &Endpoint,
        application_name: &str,
        meant: &History,
    ) -> Result<Replication, Error> {
        Replication::find(endpoint, application_name, Some(meant)).await
    }

    async fn find(
        endpoint: &Endpoint,
        application_name: &str,
        meant: Option<&History>,
    ) -> Result<Replication, Error> {
        if !endpoint.is_several() {
            return Box::pin(Replication::connect_alone(endpoint, application_name)).await;
        }
        let mut search = Search::new(endpoint);
        loop {
            let host = search.next()?;
            let looked = Box::pin(Replication::look(&host, application_name, meant)).await;
            if let Some(replication) = search.took(looked)? {
                return Ok(replication);
            }
        }
    }

    /// The session with the only host.
    async fn connect_alone(
        endpoint: &Endpoint,
        application_name: &str,
    ) -> Result<Replication, Error> {
        let mut login = Login::begin(endpoint).await?;
        loop {
            let connected = Replication::connect_one(login.ready(), application_name).await;
            if let Some(connected) = login.tried(connected).await {
                return connected;
            }
        }
    }

    /// The session with one of several hosts, if that is the primary that is meant.
    async fn look(
        host: &Endpoint,
        application_name: &str,
        meant: Option<&History>,
    ) -> Result<Result<Replication, PassedOver>, Error> {
        let mut login = Login::begin(host).await?;
        loop {
            let ready = login.ready();
            let looked = within(ready, async {
                let mut replication = Replication::connect_one(ready, application_name).await?;
                let unfit = replication.unfit(host, meant).await?;
                Ok::<_, Error>(unfit.map_or(Ok(replication), Err))
            });
            let looked = looked.await;
            if let Some(looked) = login.tried(looked).await {
                return looked;
            }
        }
    }

    /// Why it is not the primary that is meant.
    async fn unfit(
        &mut self,
        host: &Endpoint,
        meant: Option<&History>,
    ) -> Result<Option<PassedOver>, Error> {
        let row = self.query_row("ask whether it is a standby", IN_RECOVERY).await?;
        if column::<String>(&row, 0)? == "t" {
            return Ok(Some(PassedOver::standby(host)));
        }
        let Some(meant) = meant else { return Ok(None) };
        let found = self.identify_system().await?.history;
        Ok((found != *meant).then(|| PassedOver::another(host, &found)))
    }

    /// The session with one host.
    async fn connect_one(
        endpoint: &Endpoint,
        application_name: &str,
    ) -> Result<Replication, Error> {
        within(endpoint, async {
            let (connection, backend) = login::connect(endpoint, application_name).await?;
            let mut replication = Replication { connection };
            replication.begin(backend).await?;
            Ok(replication)
        })
        .await
    }

    /// Brings the session into its state. A pooler that takes replication commands hands the whole
    /// session to one process, and is asked which; another one must not lend the changed session to
    /// the application.
    async fn begin(&mut self, told: Option<i32>) -> Result<(), Error> {
        if let Some(backend) = told
            && self.set_state(backend).await?
        {
            return Ok(());
        }
        self.identify_system().await?;
        let backend = column(&self.query_row("ask for the backend", BACKEND).await?, 0)?;
        if self.set_state(backend).await? {
            return Ok(());
        }
        Err(Malformed("a session that is served by several processes").into())
    }

    /// Says whether it was this process that answered, and so whether it is done.
    async fn set_state(&mut self, backend: i32) -> Result<bool, Error> {
        let row = self.connection.command("set the session's state", &begin(backend)).await?;
        Ok(row.is_some())
    }

    /// `IDENTIFY_SYSTEM`.
    ///
    /// # Errors
    /// The connection failed, or the answer makes no sense.
    pub async fn identify_system(&mut self) -> Result<Identity, Error> {
        let row = self.connection.command("identify the server", "IDENTIFY_SYSTEM").await?;
        let row = row.unwrap_or_default();
        Ok(Identity {
            history: History { system_id: column(&row, 0)?, timeline: column(&row, 1)? },
            xlogpos: column(&row, 2)?,
        })
    }

    /// Lets values come as the bytes that they are from a database in `SQL_ASCII`: it knows no
    /// encoding, and a value that is not UTF-8 could never be sent as such. The stream would end
    /// there for good.
    ///
    /// # Errors
    /// The connection failed, or the server refused.
    pub async fn accept_any_bytes(&mut self) -> Result<(), Error> {
        let row = self.connection.command("read the encoding", "SHOW server_encoding").await?;
        if column::<String>(&row.unwrap_or_default(), 0)? == "SQL_ASCII" {
            let set = "SET client_encoding TO SQL_ASCII";
            self.connection.command("set the encoding", set).await?;
        }
        Ok(())
    }

    /// Whether the server is a standby, and which run of it this is.
    ///
    /// # Errors
    /// The connection failed, or the server refused.
    pub async fn run(&mut self) -> Result<Run, Error> {
        let sql = include_str!("../../sql/replayed.sql");
        let row = self.query_row("ask whether it is a standby", sql).await?;
        Ok(Run { in_recovery: column::<String>(&row, 0)? == "t", id: column(&row, 2)? })
    }

    /// Runs a statement and gives the first row of its answer as text; empty when there is none.
    /// Lines of comment in `sql` are left out: the grammar of replication commands has none.
    ///
    /// # Errors
    /// The connection failed, or the server refused. `doing` names the statement in the error.
    pub async fn query_row(
        &mut self,
        doing: &str,
        sql: &str,
    ) -> Result<Vec<Option<String>>, Error> {
        let lines: Vec<&str> = sql.lines().filter(|line| !line.starts_with("--")).collect();
        Ok(self.connection.command(doing, &lines.join("\n")).await?.unwrap_or_default())
    }

    /// Creates a logical slot for pgoutput and gives its consistent point: the first commit
    /// that it will stream ends after it. Waits, without a limit of its own, until every
    /// transaction has ended that was running when it began.
    ///
    /// # Errors
    /// The connection failed; or the server refused: the slot exists (SQLSTATE 42710), there is no
    /// room for it (53400), `wal_level` is not `logical` (55000), no privilege (42501).
    pub async fn create_slot(&mut self, slot: &str, kind: SlotKind) -> Result<Lsn, Error> {
        let options = match kind {
            // This spelling, without parentheses, is the one that Postgres 14 to 18 understand.
            SlotKind::Plain => "NOEXPORT_SNAPSHOT",
            SlotKind::Failover => "(SNAPSHOT 'nothing', FAILOVER)",
        };
        let name = escape_identifier(slot);
        let command = format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput {options}");
        let row = self.connection.command(&format!("create slot `{slot}`"), &command).await?;
        column(&row.unwrap_or_default(), 1)
    }

    /// Makes an existing slot one that standbys keep a copy of. Needs Postgres 17.
    ///
    /// # Errors
    /// The connection failed, or the server refused: see [`Error::slot_problem`].
    pub async fn enable_failover(&mut self, slot: &str) -> Result<(), Error> {
        let command = format!("ALTER_REPLICATION_SLOT {} (FAILOVER)", escape_identifier(slot));
        self.connection.command(&format!("alter slot `{slot}`"), &command).await?;
        Ok(())
    }

    /// Drops a slot.
    ///
    /// # Errors
    /// The connection failed, or the server refused: see [`Error::slot_problem`].
    pub async fn drop_slot(&mut self, slot: &str) -> Result<(), Error> {
        let command = format!("DROP_REPLICATION_SLOT {}", escape_identifier(slot));
        self.connection.command(&format!("drop slot `{slot}`"), &command).await?;
        Ok(())
    }

    /// Streams a slot from its confirmed position on. Two-phase commits are not asked for: a
    /// prepared transaction is told as any other, at its `COMMIT PREPARED`.
    ///
    /// # Errors
    /// The connection failed, or the server refused: see [`Error::slot_problem`]. A publication
    /// that does not exist is told later, by the stream.
    pub async fn start(
        mut self,
        slot: &str,
        publication: &str,
        options: StreamOptions,
    ) -> Result<Slot, Error> {
        let messages = if options.messages { ", messages 'true'" } else { "" };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 ({}, {}{})",
            escape_identifier(slot),
            options.streaming.options(),
            publication_names(publication),
            messages
        );
        self.connection.command_stream(&format!("stream slot `{slot}`"), &command).await?;
        let (stream, incoming) = self.connection.into_parts();
        Ok(Slot::resume(stream, incoming))
    }
}

impl std::fmt::Debug for Replication {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Replication").finish_non_exhaustive()
    }
}

/// The option of the command that starts a stream which names its publication.
#[must_use]
pub fn publication_names(publication: &str) -> String {
    format!("publication_names {}", literal(&escape_identifier(publication)))
}

/// Quotes a text as the grammar of replication commands wants it: it has no backslash escapes.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn column<T: FromStr>(row: &Row, at: usize) -> Result<T, Error> {
    let text = row.get(at).and_then(Option::as_deref);
    match text.map(str::parse) {
        Some(Ok(value)) => Ok(value),
        _ => Err(Malformed("an answer without the value that it must have").into()),
    }
}
