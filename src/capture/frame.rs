//! The bytes of `COPY BOTH`, in both directions. Pure.
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>)

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::lsn::Lsn;

/// Tag and length, which precede every message's body.
pub(super) const HEADER_SIZE: usize = 5;

/// The bytes that `XLogData` puts before its payload: `w`, two LSNs, a time.
pub(super) const DATA_HEADER_SIZE: usize = 1 + 3 * 8;

/// The server cannot build a message above 1 GiB (`MaxAllocSize`); the rest is for headers.
const LENGTH_MAX: u32 = (1 << 30) + 1024;

/// The content of a `CopyData` message that the server sends in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `w`, `XLogData`: a piece of the log, here one message of pgoutput.
    Data {
        /// Where the data starts in the log; for some messages 0.
        wal_start: Lsn,
        /// How far the server's log goes.
        wal_end: Lsn,
        /// When it was sent, in microseconds since 2000-01-01 00:00 UTC by the server's clock.
        server_time: i64,
        /// The output plugin's message.
        payload: Bytes,
    },
    /// A piece of an `XLogData` that is too long to be held: one after the other they are its
    /// payload, and nothing comes between them.
    Part {
        /// At least one byte of the output plugin's message.
        payload: Bytes,
        /// How many bytes of it follow; at 0 it is complete.
        left: usize,
    },
    /// `k`, primary keepalive.
    Keepalive {
        /// How far the server has read its log; everything of it that concerns us was sent.
        wal_end: Lsn,
        /// When it was sent, in microseconds since 2000-01-01 00:00 UTC by the server's clock.
        server_time: i64,
        /// Whether the server wants a status update at once, or else ends the connection.
        reply_requested: bool,
    },
}

/// Bytes that are not the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the replication protocol: {0}")]
pub struct Malformed(pub(super) &'static str);

impl Frame {
    /// Reads the body of a `CopyData` message.
    pub(super) fn parse(mut body: Bytes) -> Result<Frame, Malformed> {
        let cut = |_| Malformed("a frame is cut short");
        match body.try_get_u8().map_err(cut)? {
            b'w' => Ok(Frame::Data {
                wal_start: Lsn(body.try_get_u64().map_err(cut)?),
                wal_end: Lsn(body.try_get_u64().map_err(cut)?),
                server_time: body.try_get_i64().map_err(cut)?,
                payload: body,
            }),
            b'k' => {
                let frame = Frame::Keepalive {
                    wal_end: Lsn(body.try_get_u64().map_err(cut)?),
                    server_time: body.try_get_i64().map_err(cut)?,
                    reply_requested: body.try_get_u8().map_err(cut)? != 0,
                };
                if body.is_empty() { Ok(frame) } else { Err(Malformed("a keepalive is too long")) }
            }
            _ => Err(Malformed("an unknown kind of frame")),
        }
    }
}

/// The whole length in bytes, tag and length included, of the message at the front of a buffer;
/// `None` as long as its header is not there. The length is checked before anyone acts on it.
pub(super) fn message_length(buffer: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some((_tag, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    let Some(length) = rest.first_chunk() else {
        return Ok(None);
    };
    match u32::from_be_bytes(*length) {
        length @ 4..=LENGTH_MAX => Ok(usize::try_from(length).ok().and_then(|n| n.checked_add(1))),
        _ => Err(Malformed("a message of impossible length")),
    }
}

/// Appends a `CopyData` message with a standby status update that reports `lsn` as written,
/// flushed and applied. `clock` is in microseconds since 2000-01-01 00:00 UTC.
pub(super) fn put_status(lsn: Lsn, clock: i64, reply_requested: bool, out: &mut BytesMut) {
    out.put_u8(b'd');
    out.put_u32(4 + 1 + 3 * 8 + 8 + 1);
    out.put_u8(b'r');
    for _written_flushed_applied in 0..3 {
        out.put_u64(lsn.0);
    }
    out.put_i64(clock);
    out.put_u8(u8::from(reply_requested));
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use bytes::{BufMut, Bytes, BytesMut};

    use super::{Frame, Malformed, message_length, put_status};
    use crate::lsn::Lsn;

    #[test]
    fn data_and_keepalives_are_read_field_by_field() {
        let mut bytes = BytesMut::new();
        bytes.put_u8(b'w');
        bytes.put_u64(1);
        bytes.put_u64(2);
        bytes.put_i64(-3);
        bytes.put_slice(b"row");
        let frame = Frame::Data {
            wal_start: Lsn(1),
            wal_end: Lsn(2),
            server_time: -3,
            payload: Bytes::from_static(b"row"),
        };
        assert_eq!(Frame::parse(bytes.freeze()), Ok(frame));

        for (flag, reply_requested) in [(0, false), (1, true)] {
            let mut bytes = BytesMut::new();
            bytes.put_u8(b'k');
            bytes.put_u64(7);
            bytes.put_i64(8);
            bytes.put_u8(flag);
            let frame = Frame::Keepalive { wal_end: Lsn(7), server_time: 8, reply_requested };
            assert_eq!(Frame::parse(bytes.freeze()), Ok(frame));
        }
    }

    #[test]
    fn a_frame_that_is_cut_or_unknown_is_an_error() {
        for kind in [b'w', b'k'] {
            let whole = if kind == b'w' { 25 } else { 18 };
            let mut bytes = vec![0; whole];
            bytes[0] = kind;
            assert!(Frame::parse(Bytes::copy_from_slice(&bytes)).is_ok());
            for size in 0..whole {
                let cut = Bytes::copy_from_slice(&bytes[..size]);
                assert_eq!(Frame::parse(cut), Err(Malformed("a frame is cut short")), "{size}");
            }
        }
        assert!(Frame::parse(Bytes::from_static(b"x")).is_err());
        let mut long = vec![0; 19];
        long[0] = b'k';
        assert!(Frame::parse(Bytes::from(long)).is_err());
    }

    #[test]
    fn only_possible_lengths_are_believed() {
        let check = |length: u32| {
            let mut bytes = BytesMut::new();
            bytes.put_u8(b'd');
            bytes.put_u32(length);
            message_length(&bytes).ok()
        };
        for length in [0, 3, (1 << 30) + 1025, 0x7FFF_FFFF, 0x8000_0000, u32::MAX] {
            assert_eq!(check(length), None, "{length}");
        }
        assert_eq!(check(4), Some(Some(5)));
        assert_eq!(check(1 << 30), Some(Some((1 << 30) + 1)));
        for size in 0..5 {
            assert_eq!(message_length(&b"d\xff\xff\xff\xff"[..size]), Ok(None));
        }
    }

    #[test]
    fn a_status_update_is_laid_out_as_in_the_manual() {
        let mut bytes = BytesMut::new();
        put_status(Lsn(0x0102_0304_0506_0708), 9, true, &mut bytes);
        let lsn = [1, 2, 3, 4, 5, 6, 7, 8];
        let clock = [0, 0, 0, 0, 0, 0, 0, 9];
        let expected = [b"d\0\0\0\x26r".as_slice(), &lsn, &lsn, &lsn, &clock, &[1]].concat();
        assert_eq!(bytes, expected);
        assert_eq!(message_length(&bytes), Ok(Some(bytes.len())));
    }
}
