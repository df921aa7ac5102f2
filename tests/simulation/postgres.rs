//! A Postgres in memory: transactions, the log in commit order, and the order of visibility.

use std::collections::{BTreeMap, BTreeSet};

use walsweep::settle::Snapshot;

use crate::random::Random;

/// Number of a transaction, and of the row versions that it wrote; 0 is what was there before.
pub(crate) type Version = usize;

/// How many rows have an exact key, the last one read by nobody.
pub(crate) const ITEMS: u8 = 7;
/// How many lists have keys that a pattern finds.
pub(crate) const LISTS: u8 = 3;
/// The row that nobody reads.
pub(crate) const MARKER: Object = Object::Item(ITEMS - 1);
/// Rows that are written only where it will be undone: no commit ever asks for them.
pub(crate) const GHOSTS: std::ops::Range<u8> = 100..106;

/// Something that has one version at a time and is cached under one key or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Item(u8),
    List(u8),
}

impl Object {
    pub(crate) fn of_key(key: &str) -> Object {
        let mut parts = key.split(':');
        let table = parts.next();
        let id = parts.next().and_then(|id| id.parse().ok()).unwrap();
        if table == Some("item") { Object::Item(id) } else { Object::List(id) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Prepared,
    /// In the log, still a member of the process array.
    Invisible,
    Visible,
    /// Rolled back, or lost by a promotion.
    Gone,
}

pub(crate) struct Transaction {
    pub(crate) xid: u64,
    /// Objects that it wrote and that survive in it, as far as it has come.
    pub(crate) objects: Vec<Object>,
    /// Its writes that survive, each with the id of its transaction or subtransaction.
    writes: Vec<(u64, Object)>,
    /// Its subtransactions that are undone.
    undone: Vec<u64>,
    pub(crate) truncates: bool,
    pub(crate) phase: Phase,
    /// Whether a snapshot could see it, if only on a timeline that is gone.
    pub(crate) was_shown: bool,
    /// End of its commit record, once it has one; of a prepared one, of that record.
    pub(crate) end_lsn: u64,
}

/// A step of a transaction, as one record of the log tells it.
#[derive(Clone)]
pub(crate) enum What {
    Write(Object),
    /// Every item at once.
    Truncate,
    /// Subtransactions, the innermost first, are undone.
    Undone(Vec<u64>),
    Aborted,
    Committed(Record),
}

/// A record of the log.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) end_lsn: u64,
    pub(crate) version: Version,
    /// The id of the transaction or subtransaction.
    pub(crate) xid: u64,
    pub(crate) what: What,
}

#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub(crate) commit_lsn: u64,
    pub(crate) end_lsn: u64,
    pub(crate) version: Version,
}

pub(crate) struct Slot {
    pub(crate) confirmed: u64,
    /// The position that a crash leaves: the slot's file is written now and then only.
    pub(crate) saved: u64,
}

pub(crate) struct Postgres {
    pub(crate) up: bool,
    pub(crate) timeline: u32,
    /// Number of the server's lives; each ended out of order.
    pub(crate) epoch: u32,
    pub(crate) slot: Option<Slot>,
    pub(crate) transactions: Vec<Transaction>,
    /// The commits of the log.
    wal: Vec<Record>,
    log: Vec<Entry>,
    /// The end of the log.
    inserted: u64,
    flushed: u64,
    first_xid: u64,
    next_xid: u64,
    latest_completed: u64,
    running: BTreeSet<u64>,
    locked: BTreeSet<Object>,
    /// Visible versions, oldest first.
    history: BTreeMap<Object, Vec<Version>>,
}

impl Postgres {
    pub(crate) fn new(random: &Random) -> Postgres {
        // Near the wrap of 32 bits, at the beginning, anywhere.
        let epoch = random.below(3) << 32;
        let first_xid = match random.below(3) {
            0 => (epoch + (1 << 32)) - random.between(1, 60),
            1 => epoch + (1 << 31) - random.between(0, 60),
            _ => epoch + random.between(3, 5000),
        };
        let start = Transaction {
            xid: 0,
            objects: Vec::new(),
            writes: Vec::new(),
            undone: Vec::new(),
            truncates: false,
            phase: Phase::Visible,
            was_shown: true,
            end_lsn: 0,
        };
        Postgres {
            up: true,
            timeline: 1,
            epoch: 1,
            slot: None,
            transactions: vec![start],
            wal: Vec::new(),
            log: Vec::new(),
            inserted: 1000,
            flushed: 1000,
            first_xid,
            next_xid: first_xid,
            latest_completed: first_xid - 1,
            running: BTreeSet::new(),
            locked: BTreeSet::new(),
            history: BTreeMap::new(),
        }
    }

    /// Begins a transaction that has written these objects; `None` if one of them is locked.
    pub(crate) fn begin(&mut self, objects: Vec<Object>, truncates: bool) -> Option<Version> {
        if !self.up || objects.iter().any(|object| self.locked.contains(object)) {
            return None;
        }
        self.locked.extend(&objects);
        let xid = self.next_xid();
        self.running.insert(xid);
        let (phase, was_shown, end_lsn) = (Phase::Running, false, 0);
        let (version, undone) = (self.transactions.len(), Vec::new());
        if truncates {
            self.put(version, xid, What::Truncate);
        } else {
            objects.iter().for_each(|object| self.put(version, xid, What::Write(*object)));
        }
        let writes = objects.iter().map(|object| (xid, *object)).collect();
        self.transactions.push(Transaction {
            xid,
            objects,
            writes,
            undone,
            truncates,
            phase,
            was_shown,
            end_lsn,
        });
        Some(version)
    }

    fn next_xid(&mut self) -> u64 {
        self.next_xid += 1;
        self.next_xid - 1
    }

    fn put(&mut self, version: Version, xid: u64, what: What) {
        self.inserted += 8;
        self.log.push(Entry { end_lsn: self.inserted, version, xid, what });
    }

    /// A savepoint takes an id of its own.
    pub(crate) fn savepoint(&mut self) -> u64 {
        self.next_xid()
    }

    /// A running transaction, or its subtransaction `xid`, writes one more object, unless another
    /// has locked that.
    pub(crate) fn write(&mut self, version: Version, xid: u64, object: Object) {
        let transaction = &mut self.transactions[version];
        let is_own = transaction.objects.contains(&object);
        if !is_own && !self.locked.insert(object) {
            return;
        }
        if !is_own {
            transaction.objects.push(object);
        }
        transaction.writes.push((xid, object));
        self.put(version, xid, What::Write(object));
    }

    /// `ROLLBACK TO`: these subtransactions are undone, the innermost first.
    pub(crate) fn undo(&mut self, version: Version, xids: Vec<u64>) {
        let transaction = &mut self.transactions[version];
        transaction.writes.retain(|(xid, _)| !xids.contains(xid));
        let left: BTreeSet<Object> = transaction.writes.iter().map(|(_, object)| *object).collect();
        for object in transaction.objects.iter().filter(|object| !left.contains(object)) {
            self.locked.remove(object);
        }
        transaction.objects = left.into_iter().collect();
        transaction.undone.extend(&xids);
        // Their ids count as ended from here on.
        self.latest_completed = xids.iter().copied().fold(self.latest_completed, u64::max);
        let xid = xids.last().copied().unwrap_or_default();
        self.put(version, xid, What::Undone(xids));
    }

    /// Whether a change of this transaction or subtransaction is undone by now.
    pub(crate) fn is_undone(&self, version: Version, xid: u64) -> bool {
        let transaction = &self.transactions[version];
        transaction.phase == Phase::Gone || transaction.undone.contains(&xid)
    }

    pub(crate) fn phase(&self, version: Version) -> Phase {
        self.transactions[version].phase
    }

    /// The log is flushed: what is prepared outlives a crash.
    pub(crate) fn prepare(&mut self, version: Version) {
        self.inserted += 8;
        let transaction = &mut self.transactions[version];
        (transaction.phase, transaction.end_lsn) = (Phase::Prepared, self.inserted);
        self.flush();
    }

    pub(crate) fn roll_back(&mut self, version: Version) {
        self.put(version, self.transactions[version].xid, What::Aborted);
        self.give_up(version);
    }

    fn give_up(&mut self, version: Version) {
        self.transactions[version].phase = Phase::Gone;
        self.end(version);
    }

    /// Writes the commit record; it is neither flushed nor visible.
    pub(crate) fn commit(&mut self, version: Version, size: u64) -> u64 {
        let commit_lsn = self.inserted + size;
        let end_lsn = commit_lsn + 48;
        self.inserted = end_lsn;
        let record = Record { commit_lsn, end_lsn, version };
        self.wal.push(record);
        let transaction = &mut self.transactions[version];
        let (xid, what) = (transaction.xid, What::Committed(record));
        self.log.push(Entry { end_lsn, version, xid, what });
        (transaction.phase, transaction.end_lsn) = (Phase::Invisible, end_lsn);
        end_lsn
    }

    /// Records that concern nobody here.
    pub(crate) fn write_other(&mut self, size: u64) {
        self.inserted += size;
    }

    pub(crate) fn flush(&mut self) -> u64 {
        self.flushed = self.inserted;
        self.flushed
    }

    pub(crate) fn flushed(&self) -> u64 {
        self.flushed
    }

    /// The committing backend leaves the process array.
    pub(crate) fn show(&mut self, version: Version) {
        let transaction = &mut self.transactions[version];
        (transaction.phase, transaction.was_shown) = (Phase::Visible, true);
        for object in &self.transactions[version].objects {
            self.history.entry(*object).or_default().push(version);
        }
        self.end(version);
    }

    fn end(&mut self, version: Version) {
        let transaction = &self.transactions[version];
        self.running.remove(&transaction.xid);
        let last = transaction.writes.iter().map(|(xid, _)| *xid).fold(transaction.xid, u64::max);
        self.latest_completed = self.latest_completed.max(last);
        for object in &transaction.objects {
            self.locked.remove(object);
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let running: Vec<u64> = self.running.range(..xmax).copied().collect();
        let xmin = running.first().copied().unwrap_or(xmax);
        let running: Vec<String> = running.iter().map(u64::to_string).collect();
        format!("{xmin}:{xmax}:{}", running.join(",")).parse().unwrap()
    }

    /// Says, by the server's commit log, whether a transaction that has ended is committed, or a
    /// subtransaction that wrote something.
    pub(crate) fn is_committed(&self, xid: u64) -> bool {
        let survives = |one: &Transaction| {
            one.xid == xid || one.writes.iter().any(|(written_by, _)| *written_by == xid)
        };
        self.transactions
            .iter()
            .any(|one| matches!(one.phase, Phase::Invisible | Phase::Visible) && survives(one))
    }

    /// Whether a transaction is known to have written nothing that is not undone.
    pub(crate) fn holds_no_lock(&self, xid: u64) -> bool {
        // After a promotion an id may be that of a transaction that was lost, too.
        let running = self.transactions.iter().rev().find(|one| one.xid == xid);
        running.is_some_and(|one| one.objects.is_empty() && !one.truncates)
    }

    /// An id later than all, of a transaction that ends at once.
    pub(crate) fn fence(&mut self) -> u64 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.latest_completed = self.latest_completed.max(xid);
        xid
    }

    pub(crate) fn running(&self) -> BTreeSet<u64> {
        self.running.clone()
    }

    /// The record number `at` of the log, if it is flushed.
    pub(crate) fn entry(&self, at: usize) -> Option<&Entry> {
        self.log.get(at).filter(|entry| entry.end_lsn <= self.flushed)
    }

    /// Commits that end at `lsn` or before.
    pub(crate) fn records_through(&self, lsn: u64) -> &[Record] {
        &self.wal[..self.wal.partition_point(|record| record.end_lsn <= lsn)]
    }

    /// Gives the version that a new snapshot reads.
    pub(crate) fn current(&self, object: Object) -> Version {
        self.history(object).last().copied().unwrap_or(0)
    }

    /// The visible versions of an object, oldest first.
    pub(crate) fn history(&self, object: Object) -> &[Version] {
        self.history.get(&object).map_or(&[], Vec::as_slice)
    }

    /// The server is gone. What ran is rolled back, what is in the log is visible afterwards,
    /// prepared transactions stay. Commits that were not flushed are lost, and readers saw them.
    pub(crate) fn crash(&mut self, random: &Random) {
        self.up = false;
        self.epoch += 1;
        self.lose_after(self.flushed);
        self.abort_running();
        self.flush();
        if let Some(slot) = self.slot.as_mut().filter(|_| random.chance(50)) {
            slot.confirmed = slot.saved;
        }
    }

    /// Rolls back what ran, and makes visible what is in the log. The log tells the end of all that
    /// is in it and goes on no more, as the record of running transactions does.
    fn abort_running(&mut self) {
        for version in 0..self.transactions.len() {
            match self.transactions[version].phase {
                Phase::Running => self.give_up(version),
                Phase::Invisible => self.show(version),
                Phase::Prepared | Phase::Visible | Phase::Gone => {}
            }
        }
        let mut open = BTreeSet::new();
        for Entry { version, what, .. } in &self.log {
            match what {
                What::Aborted | What::Committed(_) => drop(open.remove(version)),
                What::Write(_) | What::Truncate | What::Undone(_) => drop(open.insert(*version)),
            }
        }
        for version in open {
            if self.transactions[version].phase == Phase::Gone {
                self.put(version, self.transactions[version].xid, What::Aborted);
            }
        }
    }

    /// Loses what the log holds after `end`, as if it had never been.
    fn lose_after(&mut self, end: u64) {
        let kept = self.records_through(end).len();
        for record in self.wal.split_off(kept) {
            self.transactions[record.version].phase = Phase::Gone;
        }
        self.log.truncate(self.log.partition_point(|entry| entry.end_lsn <= end));
        self.inserted = end;
        let transactions = &self.transactions;
        for versions in self.history.values_mut() {
            versions.retain(|version| transactions[*version].phase == Phase::Visible);
        }
    }

    /// A standby that lacks the last `lost` commits becomes the primary, on a timeline of its own.
    pub(crate) fn promote(&mut self, lost: usize, random: &Random) {
        let kept = self.wal.len().saturating_sub(lost);
        let first = kept.checked_sub(1).map_or(1000, |last| self.wal[last].end_lsn);
        let last = self.wal.get(kept).map_or(self.inserted, |record| record.commit_lsn);
        let end = random.between(first, last.max(first));
        for transaction in &mut self.transactions {
            if transaction.phase == Phase::Prepared && transaction.end_lsn > end {
                transaction.phase = Phase::Gone;
            }
        }
        self.lose_after(end);
        self.abort_running();
        let stays = |transaction: &&Transaction| transaction.phase == Phase::Prepared;
        let prepared: Vec<&Transaction> = self.transactions.iter().filter(stays).collect();
        self.running = prepared.iter().map(|transaction| transaction.xid).collect();
        self.locked = prepared.iter().flat_map(|one| one.objects.clone()).collect();
        // Ids of lost transactions are given out again.
        let last = self.log.iter().map(|entry| entry.xid).chain(self.running.iter().copied()).max();
        self.next_xid = last.map_or(self.first_xid, |xid| xid + 1);
        self.latest_completed = self.next_xid - 1;
        self.inserted += random.between(0, 200);
        self.flush();
        self.timeline += 1;
        let older = self.wal[..kept.saturating_sub(usize::try_from(random.below(4)).unwrap())]
            .last()
            .map_or(1000, |record| record.end_lsn);
        // Either the standby had a copy of the slot, somewhat older, or it had none.
        self.slot = self.slot.take().filter(|_| random.chance(60)).map(|slot| {
            let confirmed = slot.confirmed.min(older);
            Slot { confirmed, saved: confirmed }
        });
    }
}
