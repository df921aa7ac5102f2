//! Transactions that the last sweep of everything waits for: they may be committed, unseen, before
//! the stream begins, so that the stream does not tell of them.
//!
//! Which of those that run are committed nobody can tell. What can be told is who can have changed
//! nothing that the rules look at: see `sql/fence_holders.sql`. What such a one changes after it
//! was judged it has not committed before, so the stream tells of it. Without that, a session of
//! another database that somebody left open would hold the sweep for ever.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use postgres_protocol::escape::escape_literal;
use tokio::time::Instant;

use super::snapshot::Snapshot;
use super::{Asked, Error, Gate, Kind, Probe, answer};
use crate::config::TableName;
use crate::keys::{Lookup, Rules};
use crate::telemetry::{Health, Topic};
use crate::words::counted;

/// The first and the longest pause between two questions who holds a fence. Each reads the server's
/// lock table, which nobody can change meanwhile.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A wait that is shorter is nobody's concern.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Transactions that are named; the others are counted.
const NAMED_MAX: usize = 5;

/// The relations whose changes matter to a fence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relations {
    pub(super) schemas: Vec<String>,
    pub(super) names: Vec<String>,
    pub(super) oids: Vec<u32>,
    /// Whether changes matter that take no lock on any relation.
    pub(super) any: bool,
}

impl Relations {
    /// Gives everything that rules look at: tables, materialized views, messages.
    #[must_use]
    pub fn of_rules(rules: &Rules) -> Relations {
        let relations = rules.tables().chain(rules.views());
        let both = relations.map(|TableName { schema, name }| (schema.clone(), name.clone()));
        let (schemas, names) = both.unzip();
        Relations { schemas, names, oids: Vec::new(), any: rules.have_messages() }
    }

    /// The tables that kept answers of lookups depend on.
    #[must_use]
    pub fn of_lookups(lookups: &[Lookup]) -> Relations {
        let reads = lookups.iter().filter_map(|lookup| lookup.reads.as_ref());
        let oids = reads.flat_map(|reads| &reads.tables).map(|(oid, _)| *oid).collect();
        Relations { oids, ..Relations::default() }
    }
}

/// A transaction that may have changed what matters, and who runs it, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub xid: u64,
    /// The server's process.
    pub pid: Option<i32>,
    /// The name under which it is prepared.
    pub prepared: Option<String>,
}

/// Transactions that must have ended before a sweep is the last one.
#[derive(Debug)]
pub(in crate::settle) struct Fence {
    /// Every transaction up to this id, except
    through: u64,
    /// those that changed nothing that matters.
    harmless: HashSet<u64>,
}

impl Fence {
    pub(in crate::settle) fn new(through: u64) -> Fence {
        Fence { through, harmless: HashSet::new() }
    }

    /// Whether a snapshot shows that all have ended.
    pub(in crate::settle) fn is_passed(&self, snapshot: &Snapshot) -> bool {
        let running = snapshot.running_through(self.through);
        running.is_some_and(|mut all| all.all(|xid| self.harmless.contains(&xid)))
    }

    /// Those that have not ended, for all that a snapshot shows.
    pub(in crate::settle) fn awaited(&self, snapshot: &Snapshot) -> Vec<u64> {
        let running = snapshot.running_through(self.through).into_iter().flatten();
        running.filter(|xid| !self.harmless.contains(xid)).collect()
    }

    /// Takes in the answer to a question about these ids.
    pub(in crate::settle) fn judged(&mut self, asked: &[u64], holders: &[Holder]) {
        let holds = |xid: &u64| holders.iter().any(|holder| holder.xid == *xid);
        let harmless = asked.iter().filter(|xid| **xid <= self.through && !holds(xid));
        self.harmless.extend(harmless);
    }
}

impl<P: Probe + 'static> Gate<P> {
    /// Asks who holds the fences, if that is due. Nobody waits for the answer.
    pub(super) fn ask(&mut self) -> Option<Asked> {
        if self.fenced == 0 {
            self.fences.over();
            return None;
        }
        if !self.fences.is_due() {
            return None;
        }
        let ids = self.awaited();
        let probe = Rc::clone(&self.probe);
        Some(Box::pin(async move {
            let holders = answer(probe.holders(&ids)).await;
            (ids, holders)
        }))
    }

    /// Takes in who holds the fences. Where it cannot be told, all do.
    pub(super) fn judge(&mut self, asked: &[u64], holders: Result<Vec<Holder>, Error>) {
        let holders = match holders {
            Ok(holders) => {
                self.held_fences().for_each(|fence| fence.judged(asked, &holders));
                // Whom none waits for any more is seen by the next look.
                self.look_wanted = true;
                holders
            }
            Err(error) => {
                tracing::debug!(%error, "it cannot be told which transactions matter");
                Vec::new()
            }
        };
        let awaited = self.awaited();
        let known = holders.iter().filter(|holder| awaited.contains(&holder.xid));
        if !awaited.is_empty() {
            self.fences.tell(awaited.len(), &known.collect::<Vec<_>>());
        }
    }

    /// The ids that fences wait for, as of the latest look, ascending.
    fn awaited(&self) -> Vec<u64> {
        let Some(seen) = &self.latest else { return Vec::new() };
        let fences = self.waiting.iter().filter_map(|waiting| match &waiting.kind {
            Kind::Fence(fence, _) => Some(fence.awaited(seen.snapshot())),
            Kind::Transaction(_) => None,
        });
        fences.flatten().collect::<BTreeSet<u64>>().into_iter().collect()
    }

    fn held_fences(&mut self) -> impl Iterator<Item = &mut Fence> {
        self.waiting.iter_mut().filter_map(|waiting| match &mut waiting.kind {
            Kind::Fence(fence, _) => Some(fence),
            Kind::Transaction(_) => None,
        })
    }
}

/// When to ask who holds a fence, and what is told of it.
pub(super) struct Watch {
    health: Arc<Health>,
    /// Since when a fence is waited for.
    since: Option<Instant>,
    next: Instant,
    pause: Duration,
}

impl Watch {
    pub(super) fn new(health: Arc<Health>) -> Watch {
        Watch { health, since: None, next: Instant::now(), pause: PAUSES.0 }
    }

    /// Whether to ask now; counts as asked.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        self.since.get_or_insert(now);
        let is_due = now >= self.next;
        if is_due {
            self.next = now + self.pause;
            self.pause = (self.pause * 2).min(PAUSES.1);
        }
        is_due
    }

    /// Says for whom the sweep waits, if it has waited for a while: so many, these of them known.
    pub(super) fn tell(&self, count: usize, holders: &[&Holder]) {
        if self.since.is_none_or(|since| since.elapsed() < TELL_AFTER) {
            return;
        }
        let named: Vec<String> = holders.iter().take(NAMED_MAX).map(|one| one.name()).collect();
        let more = count.saturating_sub(named.len());
        let text = match (named.is_empty(), more) {
            (true, _) => counted(count, "transaction"),
            (false, 0) => named.join(", "),
            (false, _) => format!("{} and {more} more", named.join(", ")),
        };
        let text = format!("the last sweep of everything waits for {text}");
        let hint = holders.iter().find_map(|holder| holder.cure());
        self.health.trouble(Topic::Fence, &text, hint.as_deref());
    }

    /// No fence is waited for.
    pub(super) fn over(&mut self) {
        if self.since.take().is_some() {
            (self.next, self.pause) = (Instant::now(), PAUSES.0);
            self.health.over(&Topic::Fence);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.since.is_some() {
            self.health.forget(|topic| *topic == Topic::Fence);
        }
    }
}

impl Holder {
    pub(super) fn name(&self) -> String {
        // As pg_locks and pg_stat_activity have it.
        let xid = self.xid & 0xFFFF_FFFF;
        match (&self.prepared, self.pid) {
            (Some(gid), _) => format!("transaction {xid}, prepared as `{gid}`"),
            (None, Some(pid)) => format!("transaction {xid} of Postgres process {pid}"),
            (None, None) => format!("transaction {xid}"),
        }
    }

    pub(super) fn cure(&self) -> Option<String> {
        match (&self.prepared, self.pid) {
            (Some(gid), _) => {
                let gid = escape_literal(gid);
                Some(format!(
                    "`commit prepared {}` or `rollback prepared {}`",
                    gid.trim(),
                    gid.trim()
                ))
            }
            (None, Some(pid)) => {
                Some(format!("let it end, or end it: `select pg_terminate_backend({pid})`"))
            }
            (None, None) => None,
        }
    }
}
