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

use super::passing::HELD_SIZE_MAX;
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
    let payload = vec![b'x'; 1_000_000];
    let bytes = [data(1, &payload), data(2, b"after")].concat();
    let writer = tokio::spawn(async move {
        server.write_all(&bytes).await.unwrap();
        server
    });
    assert_eq!(slot.next().await.unwrap(), data_frame(1, &payload));
    assert_eq!(slot.next().await.unwrap(), data_frame(2, b"after"));
    // Where a buffer's memory is its own again, it finds room without a new allocation.
    slot.incoming.reserve(READ_BUFFER_SIZE);
    assert!(slot.incoming.capacity() <= 8 * READ_BUFFER_SIZE, "{}", slot.incoming.capacity());
    drop(writer.await.unwrap());
}

/// The pieces of a payload, put together; how often something was given.
async fn together(slot: &mut Slot) -> (Vec<u8>, usize) {
    let (mut whole, mut count) = (Vec::new(), 0);
    loop {
        match slot.next().await.unwrap() {
            Frame::Part { payload, left } => {
                assert!(!payload.is_empty());
                whole.extend_from_slice(&payload);
                count += 1;
                if left == 0 {
                    return (whole, count);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// I6: what is longer than a megabyte is given in pieces, and the buffer stays as it is.
#[tokio::test]
async fn a_long_message_is_given_in_pieces_and_never_held() {
    for size in [HELD_SIZE_MAX, 100 << 20] {
        let (mut slot, mut server) = slot();
        let payload: Vec<u8> = (0..=250).cycle().take(size).collect();
        let bytes = [data(1, b"before"), data(2, &payload), data(3, b"after")].concat();
        let writer = tokio::spawn(async move {
            server.write_all(&bytes).await.unwrap();
            server
        });
        assert_eq!(slot.next().await.unwrap(), data_frame(1, b"before"));
        let (whole, count) = together(&mut slot).await;
        assert!(whole == payload, "{size}: other bytes");
        assert!(count > 1);
        assert!(slot.incoming.capacity() <= 4 * READ_BUFFER_SIZE, "{}", slot.incoming.capacity());
        assert_eq!(slot.next().await.unwrap(), data_frame(3, b"after"));
        drop(writer.await.unwrap());
    }
}

#[tokio::test]
async fn a_message_of_a_megabyte_is_held_and_one_byte_more_is_not() {
    let header = 5 + 25;
    for (size, is_held) in [(HELD_SIZE_MAX - header, true), (HELD_SIZE_MAX - header + 1, false)] {
        let (mut slot, mut server) = slot();
        let bytes = data(1, &vec![b'x'; size]);
        let writer = tokio::spawn(async move {
            server.write_all(&bytes).await.unwrap();
            server
        });
        let frame = slot.next().await.unwrap();
        assert_eq!(matches!(frame, Frame::Data { .. }), is_held, "{size}");
        drop(writer.await.unwrap());
    }
}

#[tokio::test]
async fn a_long_message_cut_anywhere_in_its_beginning_is_put_together_again() {
    let payload = vec![b'x'; HELD_SIZE_MAX];
    let bytes = [data(1, &payload), data(2, b"after")].concat();
    for cut in 1..40 {
        let (mut slot, mut server) = slot();
        server.write_all(&bytes[..cut]).await.unwrap();
        slot.fill().await.unwrap();
        let mut size = match slot.buffered().unwrap() {
            Some(Frame::Part { payload, .. }) => payload.len(),
            other => {
                assert_eq!(other, None, "{cut}");
                0
            }
        };
        assert_eq!(size, cut.saturating_sub(30), "{cut}");
        let bytes = bytes.clone();
        let writer = tokio::spawn(async move {
            server.write_all(&bytes[cut..]).await.unwrap();
            server
        });
        size += together(&mut slot).await.0.len();
        assert_eq!(size, payload.len(), "{cut}");
        assert_eq!(slot.next().await.unwrap(), data_frame(2, b"after"));
        drop(writer.await.unwrap());
    }
}

/// Statuses are sent while a long message is read, and its pieces come on.
#[tokio::test]
async fn a_long_message_is_read_on_after_next_was_dropped() {
    let (mut slot, mut server) = slot();
    let payload = vec![b'x'; 3 << 20];
    let bytes = data(1, &payload);
    let writer = tokio::spawn(async move {
        for piece in bytes.chunks(70_000) {
            server.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        server
    });
    let (mut size, mut statuses) = (0, 0);
    while size < payload.len() {
        tokio::select! {
            biased;
            () = tokio::task::yield_now() => {
                slot.send_status(false).await.unwrap();
                statuses += 1;
            }
            frame = slot.next() => match frame.unwrap() {
                Frame::Part { payload, .. } => size += payload.len(),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(size, payload.len());
    assert!(statuses > 0);
    drop(writer.await.unwrap());
}

/// I9: a row filter of the publication may fail for a value.
#[tokio::test]
async fn an_error_about_a_row_is_told_without_its_value() {
    let (mut slot, mut server) = slot();
    let text = "invalid input syntax for type integer: \"Ada\"";
    server.write_all(&error("22P02", text)).await.unwrap();
    let error = slot.next().await.unwrap_err().to_string();
    assert!(error.contains("22P02") && !error.contains("Ada"), "{error}");
}

#[tokio::test]
async fn an_error_or_a_notice_of_any_length_is_told_by_its_beginning() {
    let text = "é".repeat(5 << 20);
    let told = async |bytes: Vec<u8>| {
        let (mut slot, mut server) = slot();
        let writer = tokio::spawn(async move { drop(server.write_all(&bytes).await) });
        let outcome = slot.next().await;
        assert!(slot.incoming.capacity() <= 4 * READ_BUFFER_SIZE, "{}", slot.incoming.capacity());
        drop(slot);
        writer.await.unwrap();
        outcome
    };
    let error = told(error("XX000", &text)).await.unwrap_err();
    assert_eq!(error.sql_state(), Some("XX000"));
    assert!(error.to_string().len() < 300_000);
    let detail = message(b'E', format!("SFATAL\0C57P01\0Mgoing\0D{text}\0\0").as_bytes());
    let error = told(detail).await.unwrap_err();
    assert_eq!(error.to_string(), "read replication stream: going (SQLSTATE 57P01)");
    let skipped = format!("SWARNING\0C55000\0Mskipped\0D{text}\0\0");
    let error = told(message(b'N', skipped.as_bytes())).await.unwrap_err();
    assert_eq!(error.sql_state(), Some("55000"));
    for tag in [b'N', b'S', b'A'] {
        let quiet = message(tag, format!("SNOTICE\0D{text}\0\0").as_bytes());
        assert_eq!(told([quiet, data(1, b"x")].concat()).await.unwrap(), data_frame(1, b"x"));
    }
}

#[tokio::test]
async fn what_has_no_reason_to_be_long_is_not_read() {
    for (tag, body) in [(b'Z', b"w"), (b'C', b"w"), (b'T', b"w"), (b'd', b"k"), (b'd', b"x")] {
        let mut bytes = vec![tag];
        bytes.put_u32(1 << 24);
        bytes.put_slice(body);
        bytes.put_slice(&[0; 100]);
        let told = fed(&bytes).await.next().await.unwrap_err();
        assert!(matches!(told, Error::Malformed(_)), "{tag} {told}");
    }
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
                    Frame::Keepalive { .. } | Frame::Part { .. } => panic!("none was sent"),
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
    for _ in 0..40 {
        slot.fill().await.unwrap();
        drop(slot.buffered().unwrap());
        assert!(slot.incoming.capacity() <= 4 * READ_BUFFER_SIZE, "{}", slot.incoming.capacity());
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
