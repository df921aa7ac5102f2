//! A walsender: pgoutput in the frames of `COPY BOTH`, over a pipe in memory.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::{sleep, timeout};
use walsweep::decode::{
    AbortedAt, Begin, Column, Commit, Delete, Insert, Message, OldKind, OldTuple, Relation,
    ReplicaIdentity, StreamAbort, StreamCommit, StreamStart, Truncate, Tuple, Update, Value,
    encode, encode_in_block,
};
use walsweep::lsn::Lsn;

use crate::judge::add;
use crate::postgres::{Object, Record, Version, What};
use crate::reorder::{Reorder, Told};
use crate::world::World;

/// `wal_sender_timeout`: a client that is silent for longer is cut off.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);

const ITEM: u32 = 1;
const LIST: u32 = 2;

/// Streams the slot from `from` on, until the connection is cut; gives the client's end.
pub(crate) fn start(world: &Rc<World>, from: u64) -> DuplexStream {
    let (ours, theirs) = duplex(64 * 1024);
    let world = Rc::clone(world);
    tokio::task::spawn_local(async move {
        let mut cut = world.replication.subscribe();
        let number = *cut.borrow_and_update();
        let (read, write) = split(theirs);
        let closing = Cell::new(false);
        let mut sender = Sender::new(&world, write, from);
        tokio::select! {
            biased;
            _ = cut.wait_for(|now| *now != number) => {}
            () = hear(&world, read, &closing) => {}
            () = sender.speak(&closing) => {}
        }
        world.note(|| "the replication connection ends".to_owned());
        world.judge.disturbed();
    });
    ours
}

/// Reads status updates until the client leaves.
async fn hear(world: &World, mut read: ReadHalf<DuplexStream>, closing: &Cell<bool>) {
    let mut buffer = BytesMut::new();
    let mut confirmed = 0;
    loop {
        match timeout(TIMEOUT, read.read_buf(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(_)) => {}
            Err(_elapsed) => {
                world.fail("no status update within wal_sender_timeout");
                return;
            }
        }
        while buffer.len() >= 5 {
            let length = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize + 1;
            if buffer.len() < length {
                break;
            }
            let mut message = buffer.split_to(length);
            match message.get_u8() {
                b'd' => confirmed = status(world, &message[4..], confirmed),
                b'c' => closing.set(true),
                _ => return,
            }
        }
    }
}

fn status(world: &World, mut body: &[u8], before: u64) -> u64 {
    assert_eq!(body.get_u8(), b'r', "a status update");
    let (_written, flushed) = (body.get_u64(), body.get_u64());
    if flushed == 0 {
        return before;
    }
    if flushed != before {
        world.note(|| format!("confirmed {flushed}"));
    }
    world.judge.confirmed(world, flushed, before);
    let mut postgres = world.postgres.borrow_mut();
    if let Some(slot) = &mut postgres.slot {
        slot.confirmed = slot.confirmed.max(flushed);
        if world.random.chance(25) {
            slot.saved = slot.confirmed;
        }
    }
    flushed
}

struct Sender<'a> {
    world: &'a World,
    write: WriteHalf<DuplexStream>,
    /// How many records of the log were read, and where the last one ends.
    at: usize,
    read: u64,
    reorder: Reorder,
    /// Relations that were described for all, and for one transaction in blocks.
    described: Vec<u32>,
    described_inside: HashMap<Version, Vec<u32>>,
    /// How many records are still to be read slowly.
    lag: u64,
    /// Whether an abort tells where it happened: protocol version 4.
    is_parallel: bool,
}

/// The low half of a transaction id, which is all that is sent.
fn low(xid: u64) -> u32 {
    u32::try_from(xid & 0xFFFF_FFFF).unwrap()
}

impl<'a> Sender<'a> {
    fn new(world: &'a World, write: WriteHalf<DuplexStream>, from: u64) -> Sender<'a> {
        let limit = world.random.pick(&[0, 1, 2, 3, 5, 8, 13, usize::MAX]);
        world.note(|| format!("the walsender keeps {limit} changes"));
        Sender {
            world,
            write,
            at: 0,
            read: 0,
            reorder: Reorder::new(from, limit),
            described: Vec::new(),
            described_inside: HashMap::new(),
            lag: 0,
            is_parallel: world.random.chance(50),
        }
    }

    async fn speak(&mut self, closing: &Cell<bool>) {
        let mut flushed = self.world.flushed.subscribe();
        while !closing.get() {
            flushed.mark_unchanged();
            let (next, end) = {
                let postgres = self.world.postgres.borrow();
                (postgres.entry(self.at).cloned(), postgres.flushed())
            };
            let sent = match next {
                Some(entry) => {
                    self.lag_behind().await;
                    let end_lsn = entry.end_lsn;
                    let told = self.reorder.read(self.world, entry);
                    let sent = self.send_all(told, end_lsn).await;
                    (self.at, self.read) = (self.at + 1, end_lsn);
                    let speaks = sent.is_some() && self.world.random.chance(3);
                    if speaks { self.keepalive(self.read).await } else { sent }
                }
                None => {
                    self.read = end.max(self.read);
                    let wait = self.world.random.millis(20, 400);
                    let moved = timeout(wait, flushed.changed()).await.is_ok();
                    let speaks = !moved || self.world.random.chance(10);
                    if speaks { self.keepalive(self.read).await } else { Some(()) }
                }
            };
            if sent.is_none() {
                return;
            }
        }
        self.farewell().await;
        sleep(TIMEOUT).await;
    }

    /// Now and then the log is far ahead of what is read: of transactions that readers see already
    /// there are blocks to come, and parts that are undone.
    async fn lag_behind(&mut self) {
        let (world, random) = (self.world, &self.world.random);
        if self.lag == 0 && random.below(300) > 0 {
            return;
        }
        world.judge.disturbed();
        if self.lag > 0 {
            self.lag -= 1;
            world.pause(0, 8).await;
        } else {
            world.note(|| "the walsender lags".to_owned());
            self.lag = random.between(5, 60);
            world.pause(20, 400).await;
        }
        world.judge.disturbed();
    }

    async fn farewell(&mut self) {
        for (tag, body) in [(b'c', b"".as_slice()), (b'C', b"COPY 0\0"), (b'Z', b"I")] {
            let mut out = BytesMut::new();
            out.put_u8(tag);
            out.put_u32(u32::try_from(body.len()).unwrap() + 4);
            out.put_slice(body);
            if self.put(&out).await.is_none() {
                return;
            }
        }
    }

    /// Sends everything that one record of the log gives. `None` when the connection is gone.
    async fn send_all(&mut self, all: Vec<(Version, Told)>, lsn: u64) -> Option<()> {
        for (version, told) in all {
            let xid = low(self.world.postgres.borrow().transactions[version].xid);
            match told {
                Told::Block { is_first, changes } => {
                    let messages = self.block(version, is_first, changes);
                    self.send(messages, lsn).await?;
                }
                Told::Undone(subxid) => {
                    let subxid = low(subxid);
                    self.world.note(|| format!("send the abort of {subxid} in {version}"));
                    let looks = &self.world.judge.looks;
                    add(if subxid == xid { &looks.aborts } else { &looks.parts });
                    // The server takes the relations for not described.
                    self.described_inside.remove(&version);
                    let at = AbortedAt { lsn: Lsn(lsn), time: 0 };
                    let at = self.is_parallel.then_some(at);
                    let abort = Message::StreamAbort(StreamAbort { xid, subxid, at });
                    self.send(vec![(None, abort)], lsn).await?;
                }
                Told::Whole(record, changes) => {
                    if changes.is_empty() && self.world.random.chance(70) {
                        continue;
                    }
                    self.world.note(|| format!("send {version} ending at {}", record.end_lsn));
                    let messages = self.whole(xid, record, changes);
                    self.send(messages, lsn).await?;
                }
                Told::Streamed(Record { commit_lsn, end_lsn, .. }) => {
                    self.world.note(|| format!("send the commit of {version} ending at {end_lsn}"));
                    // From here on they are described for all.
                    let described = self.described_inside.remove(&version);
                    self.described.extend(described.into_iter().flatten());
                    let (commit_lsn, end_lsn) = (Lsn(commit_lsn), Lsn(end_lsn));
                    let (flags, commit_time) = (0, 0);
                    let commit = StreamCommit { xid, flags, commit_lsn, end_lsn, commit_time };
                    self.send(vec![(None, Message::StreamCommit(commit))], lsn).await?;
                }
            }
        }
        Some(())
    }

    /// Messages that belong together, each with the id of the subtransaction if it is of a block.
    async fn send(&mut self, messages: Vec<(Option<u64>, Message)>, lsn: u64) -> Option<()> {
        let world = self.world;
        let slow = world.random.chance(10);
        let longest = if messages.len() < 8 { 5 } else { 1 };
        let last = messages.len() - 1;
        for (at, (xid, message)) in messages.into_iter().enumerate() {
            let payload =
                xid.map_or_else(|| encode(&message), |xid| encode_in_block(low(xid), &message));
            self.data(lsn, &payload).await?;
            if slow {
                world.pause(0, longest).await;
                if at < last && world.random.chance(30) {
                    // Inside of a transaction the position says nothing about what comes after it.
                    let ahead = world.postgres.borrow().flushed();
                    self.keepalive(ahead).await?;
                }
            }
        }
        Some(())
    }

    fn block(
        &mut self,
        version: Version,
        first_segment: bool,
        changes: Vec<(u64, What)>,
    ) -> Vec<(Option<u64>, Message)> {
        let world = self.world;
        world.note(|| {
            let first = if first_segment { "the first" } else { "a" };
            format!("send {first} block of {version}: {} changes", changes.len())
        });
        add(&world.judge.looks.blocks);
        if first_segment && !world.begun.borrow_mut().insert(version) {
            add(&world.judge.looks.again);
        }
        let xid = low(world.postgres.borrow().transactions[version].xid);
        let mut messages = vec![(None, Message::StreamStart(StreamStart { xid, first_segment }))];
        for (xid, what) in changes {
            let described = self.described_inside.entry(version).or_default();
            let told = change(world, &what, described);
            messages.extend(told.into_iter().map(|message| (Some(xid), message)));
        }
        messages.push((None, Message::StreamStop));
        messages
    }

    fn whole(
        &mut self,
        xid: u32,
        record: Record,
        changes: Vec<(u64, What)>,
    ) -> Vec<(Option<u64>, Message)> {
        let (final_lsn, end_lsn) = (Lsn(record.commit_lsn), Lsn(record.end_lsn));
        let (flags, commit_lsn, commit_time) = (0, final_lsn, 0);
        let begin = Message::Begin(Begin { final_lsn, commit_time, xid });
        let commit = Message::Commit(Commit { flags, commit_lsn, end_lsn, commit_time });
        let described = &mut self.described;
        let changes =
            changes.into_iter().flat_map(|(_, what)| change(self.world, &what, described));
        let messages = [begin].into_iter().chain(changes).chain([commit]);
        messages.map(|message| (None, message)).collect()
    }

    async fn data(&mut self, lsn: u64, payload: &Bytes) -> Option<()> {
        let mut body = BytesMut::new();
        body.put_u8(b'w');
        body.put_u64(lsn);
        body.put_u64(lsn);
        body.put_i64(0);
        body.put_slice(payload);
        self.frame(&body).await
    }

    async fn keepalive(&mut self, wal_end: u64) -> Option<()> {
        let mut body = BytesMut::new();
        body.put_u8(b'k');
        body.put_u64(wal_end);
        body.put_i64(0);
        body.put_u8(u8::from(self.world.random.chance(5)));
        self.frame(&body).await
    }

    async fn frame(&mut self, body: &[u8]) -> Option<()> {
        let mut out = BytesMut::new();
        out.put_u8(b'd');
        out.put_u32(u32::try_from(body.len()).unwrap() + 4);
        out.put_slice(body);
        self.put(&out).await
    }

    /// Writes as much as the connection lives for.
    async fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let Some(left) = self.world.cut_after.get() else {
            return self.write.write_all(bytes).await.ok();
        };
        let taken = left.min(bytes.len());
        self.world.cut_after.set((taken == bytes.len()).then_some(left - taken));
        self.write.write_all(&bytes[..taken]).await.ok()?;
        (taken == bytes.len()).then_some(())
    }
}

/// One change, with the description of its relation where that is due.
fn change(world: &World, what: &What, described: &mut Vec<u32>) -> Vec<Message> {
    let (relation_id, object) = match what {
        What::Write(object @ Object::Item(_)) => (ITEM, Some(object)),
        What::Write(object @ Object::List(_)) => (LIST, Some(object)),
        _ => (ITEM, None),
    };
    let mut messages = Vec::new();
    if !described.contains(&relation_id) {
        described.push(relation_id);
        messages.push(relation(relation_id));
    }
    let Some(Object::Item(id) | Object::List(id)) = object else {
        let (cascade, restart_identity, relation_ids) = (false, false, vec![ITEM]);
        messages.push(Message::Truncate(Truncate { cascade, restart_identity, relation_ids }));
        return messages;
    };
    let id = id.to_string();
    let new = Tuple::from_values(&[Value::Text(id.as_bytes()), Value::Null]);
    let old = OldTuple { kind: OldKind::Key, tuple: new.clone() };
    messages.push(match world.random.below(3) {
        0 => Message::Insert(Insert { relation_id, new }),
        1 => Message::Update(Update { relation_id, old: None, new }),
        _ => Message::Delete(Delete { relation_id, old }),
    });
    messages
}

fn relation(id: u32) -> Message {
    let column = |name: &str, is_key| Column {
        is_key,
        name: name.to_owned(),
        type_id: 25,
        type_modifier: -1,
    };
    Message::Relation(Arc::new(Relation {
        id,
        namespace: "public".to_owned(),
        name: if id == ITEM { "item" } else { "list" }.to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column("id", true), column("body", false)],
    }))
}
