//! A walsender: pgoutput in the frames of `COPY BOTH`, over a pipe in memory.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::{sleep, timeout};
use walsweep::decode::{
    Begin, Column, Commit, Delete, Insert, Message, OldKind, OldTuple, Relation, ReplicaIdentity,
    Truncate, Tuple, Update, Value, encode,
};
use walsweep::lsn::Lsn;

use crate::postgres::{Object, Record};
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
    sent: u64,
    described: Vec<u32>,
}

impl<'a> Sender<'a> {
    fn new(world: &'a World, write: WriteHalf<DuplexStream>, sent: u64) -> Sender<'a> {
        Sender { world, write, sent, described: Vec::new() }
    }

    async fn speak(&mut self, closing: &Cell<bool>) {
        let mut flushed = self.world.flushed.subscribe();
        while !closing.get() {
            flushed.mark_unchanged();
            let (next, end) = {
                let postgres = self.world.postgres.borrow();
                (postgres.next_record(self.sent), postgres.flushed())
            };
            let sent = match next {
                Some(record) => {
                    let sent = self.send(record).await;
                    self.sent = record.end_lsn;
                    sent
                }
                None => {
                    self.sent = end.max(self.sent);
                    let wait = self.world.random.millis(20, 400);
                    let moved = timeout(wait, flushed.changed()).await.is_ok();
                    let speaks = !moved || self.world.random.chance(10);
                    if speaks { self.keepalive(self.sent).await } else { Some(()) }
                }
            };
            if sent.is_none() {
                return;
            }
        }
        self.farewell().await;
        sleep(TIMEOUT).await;
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

    /// One committed transaction. `None` when the connection is gone.
    async fn send(&mut self, record: Record) -> Option<()> {
        let messages = self.messages(record);
        let Some(messages) = messages else { return Some(()) };
        self.world.note(|| format!("send {} ending at {}", record.version, record.end_lsn));
        let world = self.world;
        let slow = world.random.chance(10);
        for message in messages {
            self.data(record, &encode(&message)).await?;
            if slow {
                world.pause(0, 5).await;
                let inside = !matches!(message, Message::Commit(_));
                if inside && world.random.chance(30) {
                    // Inside of a transaction the position says nothing about what comes after it.
                    let ahead = world.postgres.borrow().flushed();
                    self.keepalive(ahead).await?;
                }
            }
        }
        Some(())
    }

    /// `None` when nothing of the transaction is published and nothing is sent of it.
    fn messages(&mut self, record: Record) -> Option<Vec<Message>> {
        let postgres = self.world.postgres.borrow();
        let transaction = &postgres.transactions[record.version];
        if transaction.objects.is_empty() && self.world.random.chance(70) {
            return None;
        }
        let xid = u32::try_from(transaction.xid & 0xFFFF_FFFF).unwrap();
        let (final_lsn, end_lsn) = (Lsn(record.commit_lsn), Lsn(record.end_lsn));
        let mut messages = vec![Message::Begin(Begin { final_lsn, commit_time: 0, xid })];
        if transaction.truncates {
            self.describe(ITEM, &mut messages);
            let (cascade, restart_identity, relation_ids) = (false, false, vec![ITEM]);
            messages.push(Message::Truncate(Truncate { cascade, restart_identity, relation_ids }));
        }
        for object in &transaction.objects {
            let (relation_id, id) = match object {
                Object::Item(_) if transaction.truncates => continue,
                Object::Item(id) => (ITEM, id),
                Object::List(id) => (LIST, id),
            };
            self.describe(relation_id, &mut messages);
            let id = id.to_string();
            let new = Tuple::from_values(&[Value::Text(id.as_bytes()), Value::Null]);
            let old = OldTuple { kind: OldKind::Key, tuple: new.clone() };
            messages.push(match self.world.random.below(3) {
                0 => Message::Insert(Insert { relation_id, new }),
                1 => Message::Update(Update { relation_id, old: None, new }),
                _ => Message::Delete(Delete { relation_id, old }),
            });
        }
        let (flags, commit_lsn) = (0, final_lsn);
        messages.push(Message::Commit(Commit { flags, commit_lsn, end_lsn, commit_time: 0 }));
        Some(messages)
    }

    fn describe(&mut self, id: u32, messages: &mut Vec<Message>) {
        if self.described.contains(&id) {
            return;
        }
        self.described.push(id);
        let column = |name: &str, is_key| Column {
            is_key,
            name: name.to_owned(),
            type_id: 25,
            type_modifier: -1,
        };
        messages.push(Message::Relation(Arc::new(Relation {
            id,
            namespace: "public".to_owned(),
            name: if id == ITEM { "item" } else { "list" }.to_owned(),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column("id", true), column("body", false)],
        })));
    }

    async fn data(&mut self, record: Record, payload: &Bytes) -> Option<()> {
        let mut body = BytesMut::new();
        body.put_u8(b'w');
        body.put_u64(record.commit_lsn);
        body.put_u64(record.end_lsn);
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
