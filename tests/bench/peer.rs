//! The yardsticks of latency: a client on blocking sockets that does as little as can be done.
//!
//! The *unsafe* one removes a key as soon as its COMMIT arrives. The *least right* one first looks
//! until a snapshot of the primary shows the transaction: nobody who keeps that promise can be
//! faster. Neither writes anything durable, removes twice, or widens what it does not know.
//!
//! Follows the manual, chapters "Message Formats" and "Logical Replication Message Formats".

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::Bed;

/// Looks made one after the other; then come pauses, from the first to the longest.
const EAGER_LOOKS: u32 = 3;
const PAUSES: (Duration, Duration) = (Duration::from_micros(100), Duration::from_micros(1_600));

/// A running client; it ends when dropped.
pub(crate) struct Peer(TcpStream);

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.shutdown(Shutdown::Both));
    }
}

impl Peer {
    /// Streams slot and publication `name`, and removes `{table}:{first column}` of each row; if
    /// `is_right`, not before it is visible.
    pub(crate) fn start(bed: &Bed, name: &str, is_right: bool) -> Peer {
        let mut slot = Wire::connect(bed.postgres.port(), true);
        slot.send(
            b'Q',
            format!(
                "START_REPLICATION SLOT \"{name}\" LOGICAL 0/0 \
                 (proto_version '1', publication_names '{name}')\0"
            )
            .as_bytes(),
        );
        while slot.message().0 != b'W' {}
        let peer = Peer(slot.writer.try_clone().unwrap());
        let look = is_right.then(|| Look::new(bed.postgres.port()));
        let redis = TcpStream::connect(("127.0.0.1", bed.redis.port())).unwrap();
        redis.set_nodelay(true).unwrap();
        thread::spawn(move || serve(slot, look, &redis));
        peer
    }
}

/// Reads the stream until it ends.
fn serve(mut slot: Wire, mut look: Option<Look>, redis: &TcpStream) {
    let mut replies = BufReader::new(redis.try_clone().unwrap());
    let (mut tables, mut keys, mut xid) = (HashMap::new(), Vec::new(), 0);
    while let Some((tag, body)) = slot.try_message() {
        if tag != b'd' {
            continue;
        }
        if body[0] == b'k' {
            if body[17] == 1 {
                slot.send(b'd', &status(&body[1..9]));
            }
            continue;
        }
        let message = &body[25..];
        let word = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
        match message[0] {
            b'B' => xid = word(17),
            b'R' => {
                let name = message[5..].split(|byte| *byte == 0).nth(1).unwrap().to_vec();
                tables.insert(word(1), name);
            }
            // New rows only: without old values, and with `N`, two bytes of a count and the kind.
            b'I' | b'U' => {
                let length = usize::try_from(word(9)).unwrap();
                let value = &message[13..13 + length];
                keys.push([&tables[&word(1)], &b":"[..], value].concat());
            }
            b'C' if !keys.is_empty() => {
                if let Some(look) = &mut look {
                    look.until_visible(xid);
                }
                unlink(redis, &mut replies, &std::mem::take(&mut keys));
            }
            _ => {}
        }
    }
}

/// One UNLINK and its reply.
fn unlink(mut redis: &TcpStream, replies: &mut impl BufRead, keys: &[Vec<u8>]) {
    let mut command = format!("*{}\r\n$6\r\nUNLINK\r\n", keys.len() + 1).into_bytes();
    for key in keys {
        command.extend(format!("${}\r\n", key.len()).bytes().chain(key.iter().copied()));
        command.extend(b"\r\n");
    }
    let mut reply = String::new();
    // The server ends with the benchmark.
    drop(redis.write_all(&command).and_then(|()| replies.read_line(&mut reply)));
}

/// A standby status update that confirms `lsn`.
fn status(lsn: &[u8]) -> Vec<u8> {
    [b"r", lsn, lsn, lsn, &[0; 8], &[0]].concat()
}

/// Asks what new snapshots see.
struct Look(Wire);

impl Look {
    fn new(port: u16) -> Look {
        let mut wire = Wire::connect(port, false);
        wire.send(b'P', b"look\0select pg_current_snapshot()::text\0\0\0");
        wire.send(b'S', b"");
        while wire.message().0 != b'Z' {}
        Look(wire)
    }

    fn until_visible(&mut self, xid: u32) {
        let (mut looks, mut pause) = (0, PAUSES.0);
        while !self.sees(u64::from(xid)) {
            looks += 1;
            if looks >= EAGER_LOOKS {
                block(pause);
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }

    fn sees(&mut self, xid: u64) -> bool {
        self.0.send_all(&[(b'B', b"\0look\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")]);
        let mut seen = false;
        loop {
            let (tag, body) = self.0.message();
            match tag {
                b'D' => {
                    let text = std::str::from_utf8(&body[6..]).unwrap();
                    let mut parts = text.split(':');
                    let xmax: u64 = parts.nth(1).unwrap().parse().unwrap();
                    let running = parts.next().unwrap();
                    let runs = running.split(',').any(|one| one.parse() == Ok(xid));
                    seen = xid < xmax && !runs;
                }
                b'E' => assert!(body.is_empty(), "{}", body.escape_ascii()),
                b'Z' => return seen,
                _ => {}
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, on blocking sockets")]
fn block(pause: Duration) {
    thread::sleep(pause);
}

/// A session without a password.
struct Wire {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Wire {
    fn connect(port: u16, replication: bool) -> Wire {
        let writer = TcpStream::connect(("127.0.0.1", port)).unwrap();
        writer.set_nodelay(true).unwrap();
        let reader = BufReader::with_capacity(65_536, writer.try_clone().unwrap());
        let mut wire = Wire { reader, writer };
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        body.extend(b"user\0postgres\0database\0postgres\0");
        if replication {
            body.extend(b"replication\0database\0");
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap();
        wire.writer.write_all(&[&length.to_be_bytes()[..], &body].concat()).unwrap();
        while wire.message().0 != b'Z' {}
        wire
    }

    fn send(&mut self, tag: u8, body: &[u8]) {
        self.send_all(&[(tag, body)]);
    }

    fn send_all(&mut self, messages: &[(u8, &[u8])]) {
        let mut bytes = Vec::new();
        for (tag, body) in messages {
            bytes.push(*tag);
            bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
            bytes.extend(*body);
        }
        // The server ends with the benchmark.
        drop(self.writer.write_all(&bytes));
    }

    fn message(&mut self) -> (u8, Vec<u8>) {
        self.try_message().expect("the server goes on")
    }

    fn try_message(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        self.reader.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        self.reader.read_exact(&mut body).ok()?;
        Some((header[0], body))
    }
}
