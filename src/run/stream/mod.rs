//! One session's stream: frames through the pure stages, and the loop back to the slot.

mod counted;
mod early;
#[cfg(test)]
mod full_tests;
#[cfg(test)]
mod idle_tests;
mod leave;
mod noted;
#[cfg(test)]
mod rest_tests;
mod swept;
mod targets;
#[cfg(test)]
mod targets_tests;
mod told;
#[cfg(test)]
mod turn_tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::counted::{Arrivals, Counters};
use self::leave::Leaving;
use self::targets::Progress;
use crate::budget::Memory;
use crate::capture::{Frame, Slot};
use crate::channel::{Closed, Receiver, Room, Sender, channel};
use crate::config::TargetId;
use crate::decode::{Condenser, LogicalMessage, Message, decode, decode_in_block};
use crate::failpoint::{Point, reach};
use crate::gather::{Gathered, Gatherer, Transaction};
use crate::keys::{Bound, InProgress, KeySet, Signal};
use crate::ledger::Ledger;
use crate::lsn::Lsn;
use crate::run::error::Error;
use crate::run::session::Timing;
use crate::run::shutdown::Shutdown;
use crate::settle::{Cache, Ended, Input, Mapped, Visible};
use crate::source;
use crate::sweep::Event;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Health, Topic};

/// Transactions that may wait between two stages.
pub const CHANNEL_LENGTH: usize = 1024;

/// Transactions on their way to their first removal beyond which no more are read (I6): the rest
/// waits in Postgres.
const IN_FLIGHT_MAX: usize = 200_000;

/// How far apart malformed messages of one reason are that the log tells of; the metric counts all.
const MALFORMED_PAUSE: Duration = Duration::from_secs(10);

/// How long what is in memory is worked on before the other tasks of this thread get a turn: with
/// thousands of rules for one table a full buffer takes longer than the server waits for a status.
const TURN: Duration = Duration::from_millis(50);

/// Frames between two looks at the clock within a turn.
const FRAMES_PER_LOOK: usize = 8;

/// The channels of a session, as the stream holds them.
pub struct Ends {
    inputs: Sender<Input>,
    events: mpsc::Receiver<(TargetId, Event)>,
    answers: mpsc::Receiver<Ended>,
    /// How far each target's watermark may go.
    safe: Vec<watch::Sender<Lsn>>,
}

/// The gate's ends.
pub struct GateEnds {
    /// Inputs that it takes.
    pub inputs: Receiver<Input>,
    /// Keys that it gives.
    pub visible: Sender<Visible>,
    /// Answers that it gives to questions.
    pub answers: mpsc::Sender<Ended>,
}

/// The targets' ends.
pub struct TargetEnds {
    /// Keys that they take.
    pub visible: Receiver<Visible>,
    /// How far the watermark of each may go.
    pub safe: Vec<watch::Receiver<Lsn>>,
    /// Events that they give, each with its target.
    pub events: mpsc::Sender<(TargetId, Event)>,
}

impl Ends {
    /// The channels between the stages of a session that begins at `start`, with so many targets.
    #[must_use]
    pub fn new(start: Lsn, targets: usize) -> (Ends, GateEnds, TargetEnds) {
        let (inputs, gate_inputs) = channel(CHANNEL_LENGTH);
        let (visible, targets_visible) = channel(CHANNEL_LENGTH);
        let (events_sender, events) = mpsc::channel(CHANNEL_LENGTH);
        let (answers_sender, answers) = mpsc::channel(CHANNEL_LENGTH);
        let (safe, targets_safe) = (0..targets).map(|_| watch::channel(start)).unzip();
        (
            Ends { inputs, events, answers, safe },
            GateEnds { inputs: gate_inputs, visible, answers: answers_sender },
            TargetEnds { visible: targets_visible, safe: targets_safe, events: events_sender },
        )
    }
}

/// A slot being streamed.
pub struct Stream<'a> {
    slot: Slot,
    gatherer: Gatherer,
    /// The part that is read of a payload that comes in pieces.
    condenser: Option<Condenser>,
    bound: &'a mut Bound,
    /// Keys of the transaction that is being received.
    keys: KeySet,
    /// Keys of transactions that come in blocks.
    in_progress: InProgress,
    /// Of all key sets.
    memory: Arc<Memory>,
    /// Whether a frame waits until that has room.
    is_full: bool,
    ledger: Ledger,
    /// The end of the server's log when the stream began.
    behind: Lsn,
    ends: Ends,
    /// Inputs that the gate had no room for; nothing is read until it has.
    held: VecDeque<Input>,
    arrivals: Arrivals,
    timing: Timing,
    last_status: Instant,
    /// Since when the server could have been heard: nobody reads while something is held, nor while
    /// what came is worked on.
    listening_since: Instant,
    /// Whether it is told that the server does not answer.
    is_unheard: bool,
    reply_due: bool,
    /// When a message was last said to be malformed, by the reason.
    malformed_told: BTreeMap<&'static str, Instant>,
    /// When it was last asked whether transactions in blocks have ended.
    last_asked: Instant,
    cache: Option<Cache>,
    /// How far each target is.
    targets: Vec<Progress>,
}

impl<'a> Stream<'a> {
    /// A stream that begins at the given LSN.
    #[must_use]
    pub fn new(
        slot: Slot,
        bound: &'a mut Bound,
        ends: Ends,
        (start, timing): (Lsn, Timing),
    ) -> Stream<'a> {
        let now = Instant::now();
        Stream {
            slot,
            gatherer: Gatherer::new(),
            condenser: None,
            keys: bound.key_set(),
            in_progress: InProgress::new(bound.key_set()),
            memory: Arc::clone(bound.rules().memory()),
            is_full: false,
            bound,
            ledger: Ledger::new(start, ends.safe.len()),
            behind: Lsn::ZERO,
            targets: ends.safe.iter().map(|_| Progress::default()).collect(),
            ends,
            held: VecDeque::new(),
            arrivals: Arrivals::default(),
            timing,
            last_status: now,
            listening_since: now,
            is_unheard: false,
            reply_due: false,
            malformed_told: BTreeMap::new(),
            last_asked: now,
            cache: None,
        }
    }

    /// Notes that the server's log ended at `wal_end` when the stream began: what lies before may
    /// have waited since `since`, and is not confirmed sooner.
    #[must_use]
    pub fn behind(mut self, wal_end: Lsn, since: Option<Instant>) -> Stream<'a> {
        self.behind = wal_end;
        if let Some(since) = since.filter(|_| wal_end > self.ledger.safe()) {
            self.arrivals.seed(wal_end, since);
        }
        self
    }

    /// Streams until asked to stop.
    ///
    /// What is done first when several things are possible: the wish to stop; what the sweeper
    /// reports, because it lets the confirmation move; the clock, because the server waits for a
    /// status; what the gate had no room for; and only then more from the slot, so that nothing is
    /// taken in that cannot be passed on.
    ///
    /// # Errors
    ///
    /// Whatever ends the session.
    pub async fn run(
        mut self,
        watched: (&Health, &Metrics),
        shutdown: &mut Shutdown,
    ) -> Result<(), Error> {
        let (counters, mut handover) = (Counters::new(watched), shutdown.clone());
        let (inputs, memory) = (self.ends.inputs.clone(), Arc::clone(&self.memory));
        let mut clock = interval((self.timing.status / 2).min(Duration::from_secs(1)));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaving: Option<Leaving> = None;
        loop {
            if leaving.as_ref().is_some_and(|leaving| self.is_to_leave(leaving, watched.0)) {
                return self.hand_over(watched, shutdown).await;
            }
            let may_read =
                self.held.is_empty() && self.ledger.in_flight() < IN_FLIGHT_MAX && !self.is_full;
            // What is on its way already must not wait while the thread is blocked for more.
            let is_awaited = self.is_awaited();
            self.slot.shares_thread(is_awaited || watched.0.has_pass());
            let rest = self
                .slot
                .rests_until()
                .filter(|until| may_read && is_awaited && *until > Instant::now());
            tokio::select! {
                biased;
                () = shutdown.requested() => {
                    return self.drain(watched, shutdown.has_heir()).await;
                }
                farewell = handover.handed_over(), if leaving.is_none() => {
                    leaving = Some(self.leaves(farewell));
                }
                event = self.ends.events.recv() => self.hear(event, watched).await?,
                _ = clock.tick() => self.tick(watched.0, may_read).await?,
                Some(ended) = self.ends.answers.recv() => self.release(ended),
                room = room_for(&inputs, self.held.front()) => {
                    self.pass_held(room)?;
                    self.take_buffered(&counters)?;
                }
                () = memory.room(), if self.is_full => {
                    self.take_buffered(&counters)?;
                }
                () = sleep_until(rest.unwrap_or_else(Instant::now)), if rest.is_some() => {}
                filled = self.slot.fill(), if may_read && rest.is_none() => {
                    let has_more = filled?;
                    let is_through = self.take_buffered(&counters)?;
                    if self.reply_due {
                        self.send_status().await?;
                    }
                    // A socket that is never empty would keep this task running; the gate and the
                    // sweeper live on the same thread.
                    if has_more || !is_through {
                        tokio::task::yield_now().await;
                    }
                }
            }
            counters.holds(self.ledger.in_flight(), self.memory.used());
        }
    }

    /// Every whole frame in memory, as long as the gate has room, another key set fits, and the
    /// turn lasts. Returns whether the turn lasted long enough.
    fn take_buffered(&mut self, counters: &Counters<'_>) -> Result<bool, Error> {
        self.is_full = false;
        let began = Instant::now();
        let mut frames = 0_usize;
        let is_through = loop {
            if !self.held.is_empty() {
                break true;
            }
            if frames.is_multiple_of(FRAMES_PER_LOOK) && frames > 0 && began.elapsed() >= TURN {
                break false;
            }
            frames += 1;
            self.is_full = !self.memory.has_room();
            if self.is_full {
                break true;
            }
            let Some(frame) = self.slot.buffered()? else { break true };
            self.take_frame(frame, counters)?;
        };
        // Nobody listened to the server meanwhile.
        self.listening_since = Instant::now();
        self.publish_safe();
        Ok(is_through)
    }

    fn take_frame(&mut self, frame: Frame, counters: &Counters<'_>) -> Result<(), Error> {
        match frame {
            Frame::Data { payload, .. } => {
                let (xid, message) = match self.gatherer.in_block() {
                    Some(_) => decode_in_block(payload)?,
                    None => (None, decode(payload)?),
                };
                self.take_message(xid, message, counters)?;
            }
            Frame::Part { payload, left } => self.take_part((&payload, left), counters)?,
            Frame::Keepalive { wal_end, server_time, reply_requested } => {
                counters.heard(server_time);
                self.ledger.keepalive(wal_end);
                self.reply_due |= reply_requested;
            }
        }
        Ok(())
    }

    /// A piece of a long payload, and how much of it follows.
    fn take_part(
        &mut self,
        (piece, left): (&[u8], usize),
        counters: &Counters<'_>,
    ) -> Result<(), Error> {
        let in_block = self.gatherer.in_block().is_some();
        self.condenser.get_or_insert_with(|| Condenser::new(in_block)).push(piece);
        match self.condenser.take_if(|_| left == 0) {
            Some(condenser) => {
                let (xid, message) = condenser.finish()?;
                self.take_message(xid, message, counters)
            }
            None => Ok(()),
        }
    }

    /// One message; inside of a block with the id of the transaction or subtransaction that it
    /// tells of.
    fn take_message(
        &mut self,
        xid: Option<u32>,
        message: Message,
        counters: &Counters<'_>,
    ) -> Result<(), Error> {
        if matches!(message, Message::Begin(_)) {
            self.ledger.begin();
        }
        match self.gatherer.push(message)? {
            Gathered::Nothing => {}
            Gathered::Change(change) => {
                counters.row(&change.row);
                self.note(change.relation.id);
                if let Some(xid) = xid {
                    self.bound.add(&change, self.in_progress.of(xid));
                    return Ok(());
                }
                let had_none = self.keys.is_empty();
                self.bound.add(&change, &mut self.keys);
                if had_none && !self.keys.is_empty() {
                    self.announce();
                }
            }
            Gathered::Truncate(changes) => {
                changes.iter().for_each(|change| self.note(change.relation.id));
                let keys = xid.map_or(&mut self.keys, |xid| self.in_progress.of(xid));
                for change in &changes {
                    counters.row(&change.row);
                    self.bound.add(change, keys);
                }
            }
            Gathered::Committed(transaction) => {
                let keys = std::mem::replace(&mut self.keys, self.bound.key_set());
                self.take_commit(transaction, keys, counters);
            }
            Gathered::Logical(message) => self.take_logical(xid, &message, counters),
            Gathered::Block(xid) => {
                self.ledger.begin();
                self.in_progress.enter(xid);
            }
            Gathered::Pause => {
                self.in_progress.leave();
                self.ledger.pause();
                self.ask();
            }
            Gathered::StreamCommitted(transaction) => {
                let keys = self.in_progress.commit(transaction.xid);
                self.take_commit(transaction, keys, counters);
            }
            Gathered::Aborted { xid, subxid } => {
                self.note_undone(xid, subxid);
                self.in_progress.abort(xid, subxid);
            }
            Gathered::ShapeUndone { xid } => return Err(Error::ShapeUndone { xid }),
        }
        Ok(())
    }

    fn take_logical(
        &mut self,
        xid: Option<u32>,
        message: &LogicalMessage,
        counters: &Counters<'_>,
    ) {
        let had_none = self.keys.is_empty();
        // Outside of a transaction it is malformed, and adds nothing, wherever it comes. In a block
        // the server names the top-level transaction, so that no savepoint takes a message back:
        // that removes more than it must.
        let keys = match xid.filter(|_| message.transactional) {
            Some(xid) => self.in_progress.of(xid),
            None => &mut self.keys,
        };
        let signal = self.bound.signal(message, keys);
        if had_none && !self.keys.is_empty() {
            self.announce();
        }
        counters.signal(signal);
        let Signal::Malformed(malformed) = signal else { return };
        let now = Instant::now();
        let (reason, prefix) = (malformed.as_str(), &*message.prefix);
        let last = self.malformed_told.get(reason);
        if last.is_none_or(|last| now - *last >= MALFORMED_PAUSE) {
            self.malformed_told.insert(reason, now);
            tracing::warn!(reason, prefix, lsn = %message.lsn, "a message removes nothing");
        }
    }

    fn take_commit(&mut self, transaction: Transaction, mut keys: KeySet, counters: &Counters<'_>) {
        keys.end();
        counters.transactions.inc();
        let age = counters.read(&transaction);
        for (rule, why) in self.bound.new_failures() {
            let rule = &self.bound.rules().names()[usize::from(rule.0)];
            tracing::warn!(rule, why, "`when` cannot be evaluated for a row, and counts as true");
        }
        for (table, partition) in self.gatherer.smaller_partitions() {
            told::warn_smaller(self.bound.rules(), &table, &partition);
        }
        counters.keys(&keys);
        if keys.is_empty() {
            self.ledger.skip(transaction.end_lsn);
            return self.pass_without_keys(transaction, keys);
        }
        told::tell(&transaction, &keys, self.bound.rules().names());
        counters.committed(&transaction, &keys);
        let received_at = Instant::now();
        self.ledger.open(transaction.end_lsn);
        let committed_at = received_at.checked_sub(age).unwrap_or(received_at);
        self.arrivals.add(transaction.end_lsn, committed_at);
        reach(Point::Received);
        self.pass_on(Input::Transaction(Box::new(Mapped { transaction, received_at, keys })));
    }

    fn pass_on(&mut self, mut input: Input) {
        if let Some(keys) = input.keys() {
            keys.on_its_way();
        }
        if !self.held.is_empty() {
            self.held.push_back(input);
        } else if let Err(input) = self.ends.inputs.try_send(input) {
            self.held.push_back(input);
        }
    }

    fn pass_held(&mut self, room: Result<Room<'_, Input>, Closed>) -> Result<(), Error> {
        let room = room.map_err(|Closed| Error::Stage("settle"))?;
        if let Some(input) = self.held.pop_front() {
            room.send(input);
        }
        Ok(())
    }

    fn publish_safe(&self) {
        for (target, published) in TargetId::first(self.ends.safe.len()).zip(&self.ends.safe) {
            let safe = self.ledger.safe_of(target);
            published.send_if_modified(|published| std::mem::replace(published, safe) != safe);
        }
    }

    async fn hear(
        &mut self,
        event: Option<(TargetId, Event)>,
        (health, metrics): (&Health, &Metrics),
    ) -> Result<(), Error> {
        let (target, event) = event.ok_or(Error::Stage("sweep"))?;
        match event {
            Event::Held(held) => self.ledger.hold(target, &held),
            Event::Swept(swept) => {
                self.ledger.advance(target, &swept);
                self.publish_safe();
            }
            Event::Covered(lsn) => {
                self.ledger.cover(target, lsn);
                self.told_again(target, (health, metrics));
                self.slot.confirm(self.ledger.confirmable());
                self.arrivals.confirmed(self.slot.confirmed());
                reach(Point::ConfirmDue);
                self.send_status().await?;
                reach(Point::Confirmed);
            }
            Event::ResyncOwed(doubt) => self.resync(target, doubt, (health, metrics)),
            Event::RedisLost => self.lost(target, health),
            Event::Whole => self.whole(target, (health, metrics)),
        }
        Ok(())
    }

    async fn tick(&mut self, health: &Health, listening: bool) -> Result<(), Error> {
        health.beat();
        self.ask();
        let now = Instant::now();
        if !listening {
            self.listening_since = now;
        }
        let silent = self.silent(now);
        if silent > self.timing.silence {
            return Err(source::Error::Silent(silent.as_secs()).into());
        }
        self.tell_of_silence(silent, health);
        health.unconfirmed(self.oldest_unconfirmed());
        if now - self.last_status >= self.timing.status {
            self.send_status().await?;
        }
        Ok(())
    }

    /// Says that the server does not answer, long before it is taken for dead: what is committed
    /// meanwhile is not seen, so keys stay.
    fn tell_of_silence(&mut self, silent: Duration, health: &Health) {
        let worrying = self.timing.silence / 2;
        let is_silent = silent > worrying;
        if is_silent && !self.is_unheard {
            let text = format!(
                "Postgres has sent nothing for {} s, though asked to: keys of what is committed \
                 meanwhile wait",
                worrying.as_secs()
            );
            let hint = format!(
                "look whether the process that serves the slot runs (`active_pid` in \
                 pg_replication_slots), and at the network to it; after {} s walsweep begins a new \
                 session",
                self.timing.silence.as_secs()
            );
            health.trouble(Topic::Session, &text, Some(&hint));
        } else if self.is_unheard && !is_silent {
            health.over(&Topic::Session);
        }
        self.is_unheard = is_silent;
    }

    /// Since when something may be unconfirmed. Of a server that does not answer nothing is known
    /// since it was heard last.
    fn oldest_unconfirmed(&self) -> Option<Instant> {
        let unheard = self.is_unheard.then(|| self.slot.last_received());
        self.arrivals.oldest().into_iter().chain(unheard).min()
    }

    /// How long the server could have been heard and was not.
    fn silent(&self, now: Instant) -> Duration {
        now - self.slot.last_received().max(self.listening_since)
    }

    /// A server that has nothing to say is asked for a reply, with whatever status comes first: to
    /// a client that reports often it never speaks by itself.
    async fn send_status(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let reply_requested = self.silent(now) >= self.timing.status;
        self.reply_due = false;
        self.last_status = now;
        Ok(self.slot.send_status(reply_requested).await?)
    }

    /// Whether a removal is on its way that somebody waits for: a first one, or a sweep that is
    /// owed, whose every step would wait for the blocked thread.
    fn is_awaited(&self) -> bool {
        self.ledger.in_flight() > 0 || self.owes_sweep()
    }
}

/// Waits for room for the first one held; for ever, if there is none.
async fn room_for<'a>(
    inputs: &'a Sender<Input>,
    first: Option<&Input>,
) -> Result<Room<'a, Input>, Closed> {
    match first {
        Some(first) => inputs.room_for(first).await,
        None => std::future::pending().await,
    }
}
