//! The stream over a pipe: what a real server does rarely, here on purpose.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

use super::{Error, Frame, READ_BUFFER_SIZE, Slot};
use crate::lsn::Lsn;

/// A message from the server.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.put_u32(u32::try_from(body.len() + 4).unwrap());
    bytes.put_slice(body);
    bytes
}

fn data(lsn: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.put_u64(lsn);
    body.put_u64(lsn);
    body.put_i64(0);
    body.put_slice(payload);
    message(b'd', &body)
}

fn keepalive(lsn: u64) -> Vec<u8> {
    let mut body = vec![b'k'];
    body.put_u64(lsn);
    body.put_i64(0);
    body.put_u8(1);
    message(b'd', &body)
}

fn error(code: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0C{code}\0M{text}\0Dsecret row\0\0").as_bytes())
}

fn data_frame(lsn: u64, payload: &[u8]) -> Frame {
    let payload = Bytes::copy_from_slice(payload);
    Frame::Data { wal_start: Lsn(lsn), wal_end: Lsn(lsn), server_time: 0, payload }
}

fn keepalive_frame(lsn: u64) -> Frame {
    Frame::Keepalive { wal_end: Lsn(lsn), server_time: 0, reply_requested: true }
}

/// A slot, and the server's end of its connection.
fn slot() -> (Slot, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    (Slot::over(ours), theirs)
}

async fn fed(bytes: &[u8]) -> Slot {
    let (slot, mut server) = slot();
    server.write_all(bytes).await.unwrap();
    slot
}

/// A connection whose reads are written down: each brings one piece, as with TLS, or fails. After
/// the last one nothing comes any more.
struct Reads(VecDeque<io::Result<Vec<u8>>>);

impl AsyncRead for Reads {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.0.pop_front() {
            Some(piece) => Poll::Ready(piece.map(|piece| buffer.put_slice(&piece))),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Reads {
    fn poll_write(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn frames_that_came_with_the_answer_need_no_further_byte() {
    let (ours, _silent_server) = duplex(1 << 20);
    let incoming = BytesMut::from([data(1, b"x"), data(2, b"y")].concat().as_slice());
    let mut slot = Slot::resume(Box::new(ours), incoming);
    for (lsn, payload) in [(1, b"x"), (2, b"y")] {
        let filled = tokio::time::timeout(Duration::from_secs(60), slot.fill()).await;
        filled.expect("a frame is in memory").unwrap();
        assert_eq!(slot.buffered().unwrap(), Some(data_frame(lsn, payload)));
    }
}

#[tokio::test]
async fn pieces_that_are_there_are_taken_at_once() {
    let count = 100_u64;
    let pieces = (0..count).map(|lsn| Ok(data(lsn, b"x"))).collect();
    let mut slot = Slot::over(Reads(pieces));
    slot.fill().await.unwrap();
    for lsn in 0..count {
        assert_eq!(slot.buffered().unwrap(), Some(data_frame(lsn, b"x")));
    }
}

#[tokio::test]
async fn what_came_before_a_broken_connection_is_used_and_the_break_is_told() {
    let reset = || Err(io::ErrorKind::ConnectionReset.into());
    let mut slot = Slot::over(Reads([Ok(data(1, b"x")), reset()].into()));
    assert_eq!(slot.next().await.unwrap(), data_frame(1, b"x"));
    match slot.next().await {
        Err(Error::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
    let mut slot = Slot::over(Reads([reset()].into()));
    assert!(matches!(slot.next().await, Err(Error::Io(_))));
    let mut slot = Slot::over(Reads([Ok(data(1, b"x")), Ok(Vec::new()), Ok(Vec::new())].into()));
    assert_eq!(slot.next().await.unwrap(), data_frame(1, b"x"));
    assert!(matches!(slot.next().await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_large_row_gives_its_memory_back() {
    let (mut slot, mut server) = slot();
    let payload = vec![b'x'; 5 << 20];
    let bytes = [data(1, &payload), data(2, b"after")].concat();
    let writer = tokio::spawn(async move {
        server.write_all(&bytes).await.unwrap();
        server
    });
    assert_eq!(slot.next().await.unwrap(), data_frame(1, &payload));
    assert_eq!(slot.next().await.unwrap(), data_frame(2, b"after"));
    // Where a buffer's memory is its own again, it finds room without a new allocation.
    slot.incoming.reserve(READ_BUFFER_SIZE);
    assert!(slot.incoming.capacity() <= 2 * READ_BUFFER_SIZE, "{}", slot.incoming.capacity());
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn a_frame_cut_anywhere_is_put_together_again() {
    let bytes = [data(1, b"first"), keepalive(2), data(3, b"")].concat();
    for cut in 1..bytes.len() {
        let (mut slot, mut server) = slot();
        let mut frames = Vec::new();
        for piece in [&bytes[..cut], &bytes[cut..]] {
            server.write_all(piece).await.unwrap();
            slot.fill().await.unwrap();
            while let Some(frame) = slot.buffered().unwrap() {
                frames.push(frame);
            }
        }
        let expected = [data_frame(1, b"first"), keepalive_frame(2), data_frame(3, b"")];
        assert_eq!(frames, expected, "cut after {cut} bytes");
    }
}

#[tokio::test]
async fn next_can_be_dropped_anywhere_and_loses_nothing() {
    for seed in 0..20 {
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut slot, mut server) = slot();
        let count = 200_u64;
        let bytes: Vec<u8> = (0..count)
            .flat_map(|lsn| data(lsn, &vec![b'x'; random.random_range(0..300)]))
            .collect();
        let mut cuts = SmallRng::seed_from_u64(seed + 1000);
        let feeder = tokio::spawn(async move {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cuts.random_range(1..=rest.len().min(200)));
                server.write_all(piece).await.unwrap();
                rest = after;
                tokio::task::yield_now().await;
            }
            server
        });
        let mut received = 0;
        while received < count {
            let patience = random.random_range(0..3);
            let give_up = async {
                for _ in 0..patience {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                () = give_up => {}
                frame = slot.next() => match frame.unwrap() {
                    Frame::Data { wal_start, .. } => {
                        assert_eq!(wal_start, Lsn(received), "seed {seed}");
                        received += 1;
                    }
                    Frame::Keepalive { .. } => panic!("none was sent"),
                }
            }
        }
        drop(feeder.await.unwrap());
    }
}

#[tokio::test]
async fn a_status_update_dropped_half_way_is_finished_before_the_next() {
    let (ours, mut server) = duplex(10);
    let mut slot = Slot::over(ours);
    slot.confirm(Lsn(5));
    tokio::select! {
        biased;
        _ = slot.send_status(true) => panic!("the pipe holds 10 bytes"),
        () = tokio::task::yield_now() => {}
    }
    slot.confirm(Lsn(6));
    let reader = tokio::spawn(async move {
        let mut bytes = [0; 2 * 39];
        server.read_exact(&mut bytes).await.unwrap();
        bytes
    });
    slot.send_status(false).await.unwrap();
    drop(slot);
    let bytes = reader.await.unwrap();
    for (status, lsn, flag) in [(&bytes[..39], 5, 1), (&bytes[39..], 6, 0)] {
        assert_eq!(&status[..6], b"d\0\0\0\x26r");
        assert_eq!((status[13], status[21], status[29], status[38]), (lsn, lsn, lsn, flag));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_bytes_is_an_error_in_time() {
    let (ours, _server) = duplex(10);
    let mut slot = Slot::over(ours);
    let error = slot.send_status(false).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert_eq!(error.to_string(), "talk to the replication server: no progress within 10 s");
}

#[tokio::test]
async fn the_confirmed_position_never_falls() {
    let (mut slot, _server) = slot();
    assert_eq!(slot.confirmed(), Lsn::ZERO);
    for (lsn, expected) in [(5, 5), (3, 5), (5, 5), (9, 9), (0, 9)] {
        slot.confirm(Lsn(lsn));
        assert_eq!(slot.confirmed(), Lsn(expected));
    }
}

#[tokio::test]
async fn an_impossible_length_is_an_error_and_no_memory() {
    for length in [0, 3, 0x7FFF_FFFF, 0xFFFF_FFFF_u32] {
        let mut slot = fed(&[b"d".as_slice(), &length.to_be_bytes()].concat()).await;
        let error = slot.next().await.unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{length}: {error}");
        assert!(slot.incoming.capacity() <= 2 * READ_BUFFER_SIZE);
    }
}

#[tokio::test]
async fn an_announced_gigabyte_reserves_nothing_before_it_comes() {
    let (mut slot, mut server) = slot();
    server.write_all(b"d\x40\0\0\0w").await.unwrap();
    while slot.incoming.len() < 4 * READ_BUFFER_SIZE {
        slot.fill().await.unwrap();
        assert_eq!(slot.buffered().unwrap(), None);
        assert!(slot.incoming.capacity() <= 2 * (slot.incoming.len() + READ_BUFFER_SIZE));
        server.write_all(&[0; 100_000]).await.unwrap();
    }
}

#[tokio::test]
async fn a_message_larger_than_the_buffer_comes_through_whole() {
    let (mut slot, mut server) = slot();
    let payload: Vec<u8> = (0..=250).cycle().take(3 * READ_BUFFER_SIZE).collect();
    let bytes = [data(1, &payload), data(2, b"after")].concat();
    let writer = tokio::spawn(async move {
        server.write_all(&bytes).await.unwrap();
        server
    });
    assert_eq!(slot.next().await.unwrap(), data_frame(1, &payload));
    assert_eq!(slot.next().await.unwrap(), data_frame(2, b"after"));
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn an_error_of_the_server_keeps_its_code_and_drops_its_detail() {
    let mut slot = fed(&[data(1, b"x"), error("57P01", "going down")].concat()).await;
    assert_eq!(slot.next().await.unwrap(), data_frame(1, b"x"));
    let error = slot.next().await.unwrap_err();
    assert_eq!(error.sql_state(), Some("57P01"));
    assert_eq!(error.to_string(), "read replication stream: going down (SQLSTATE 57P01)");
    assert!(!format!("{error:?}").contains("secret"));
}

#[tokio::test]
async fn every_way_in_which_a_stream_ends_is_an_error_that_says_so() {
    for tag in [b'c', b'C', b'Z'] {
        assert!(matches!(fed(&message(tag, b"x\0")).await.next().await, Err(Error::Ended)));
    }
    assert!(matches!(fed(&data(1, b"x")[..9]).await.next().await, Err(Error::Closed)));
    assert!(matches!(fed(&message(b'T', b"")).await.next().await, Err(Error::Malformed(_))));
    assert!(matches!(fed(&message(b'd', b"")).await.next().await, Err(Error::Malformed(_))));
}

#[tokio::test]
async fn notices_and_settings_do_not_disturb_the_stream() {
    let quiet = [message(b'N', b"Mx\0\0"), message(b'S', b"a\0b\0"), message(b'A', b"")];
    let mut slot = fed(&[quiet.concat(), data(1, b"x")].concat()).await;
    assert_eq!(slot.next().await.unwrap(), data_frame(1, b"x"));
}

#[tokio::test]
async fn a_publication_that_the_server_leaves_out_is_an_error() {
    let warning = message(b'N', b"SWARNING\0C55000\0Mskipped loading publication \"p\"\0\0");
    let error = fed(&warning).await.next().await.unwrap_err();
    assert_eq!(error.sql_state(), Some("55000"), "{error}");
    assert_eq!(error.slot_problem(), None);
}

#[tokio::test]
async fn a_payload_is_a_slice_of_the_buffer_and_no_copy() {
    let mut slot = fed(&[data(1, b"first"), data(2, b"second")].concat()).await;
    slot.fill().await.unwrap();
    let buffer = slot.incoming.as_ptr_range();
    for _ in 0..2 {
        match slot.buffered().unwrap() {
            Some(Frame::Data { payload, .. }) => assert!(buffer.contains(&payload.as_ptr())),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn close_confirms_says_goodbye_and_waits_for_the_server() {
    let (mut slot, mut server) = slot();
    slot.confirm(Lsn(7));
    let peer = tokio::spawn(async move {
        let mut bytes = BytesMut::zeroed(39 + 5);
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!((bytes[13], bytes[39]), (7, b'c'));
        let rest = [data(9, b"late"), message(b'c', b""), message(b'C', b"COPY 0\0")].concat();
        server.write_all(&rest).await.unwrap();
        server.write_all(&message(b'Z', b"I")).await.unwrap();
        let mut farewell = Vec::new();
        server.read_to_end(&mut farewell).await.unwrap();
        farewell
    });
    slot.close(Duration::from_secs(5)).await.unwrap();
    assert_eq!(peer.await.unwrap(), b"X\0\0\0\x04");
}

#[tokio::test(start_paused = true)]
async fn close_gives_up_on_a_server_that_does_not_finish() {
    let (slot, _server) = slot();
    let error = slot.close(Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
}

#[test]
fn sessions_and_streams_can_be_moved_into_a_task() {
    fn can_be_spawned(_: impl Send + 'static) {}
    can_be_spawned(async {
        let endpoint = crate::postgres::Endpoint::parse("postgres://u@h").unwrap();
        drop(crate::postgres::connect_sql(&endpoint, "x").await);
        let replication = super::Replication::connect(&endpoint, "x").await.unwrap();
        let mut slot = replication.start("s", "p", super::StreamOptions::default()).await.unwrap();
        slot.next().await.unwrap();
        slot.send_status(true).await.unwrap();
        slot.close(Duration::ZERO).await
    });
}
