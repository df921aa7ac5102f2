//! Messages of protocol versions 2 and 4, which tell of a large transaction while it runs.

use super::cursor::Cursor;
use super::error::Error;
use crate::lsn::Lsn;

/// Message `S`: a block of changes of a transaction that may still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStart {
    /// The top-level transaction's id, 32 bit.
    pub xid: u32,
    /// Whether this is the transaction's first block.
    pub first_segment: bool,
}

/// Message `c`: a transaction that was sent in blocks is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamCommit {
    /// The top-level transaction's id, 32 bit.
    pub xid: u32,
    /// Unused by Postgres, currently 0.
    pub flags: u8,
    /// The LSN of the commit record.
    pub commit_lsn: Lsn,
    /// The LSN of the end of the commit record: what may be confirmed.
    pub end_lsn: Lsn,
    /// Commit time, microseconds since 2000-01-01 00:00 UTC, by the server's clock.
    pub commit_time: i64,
}

/// Message `A`: a transaction that was sent in blocks, or one of its subtransactions, is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamAbort {
    /// The top-level transaction's id, 32 bit.
    pub xid: u32,
    /// The id of what is undone: a subtransaction's, or once more the top-level one's.
    pub subxid: u32,
    /// Where and when; told only by protocol version 4 with `streaming 'parallel'`.
    pub at: Option<AbortedAt>,
}

/// Where and when a transaction was undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedAt {
    /// The LSN of the abort record.
    pub lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00 UTC, by the server's clock.
    pub time: i64,
}

impl StreamStart {
    pub(super) fn decode(cursor: &mut Cursor) -> Result<StreamStart, Error> {
        Ok(StreamStart {
            xid: cursor.u32("StreamStart.xid")?,
            first_segment: cursor.flag("StreamStart.first_segment")?,
        })
    }
}

impl StreamCommit {
    pub(super) fn decode(cursor: &mut Cursor) -> Result<StreamCommit, Error> {
        Ok(StreamCommit {
            xid: cursor.u32("StreamCommit.xid")?,
            flags: cursor.u8("StreamCommit.flags")?,
            commit_lsn: cursor.lsn("StreamCommit.commit_lsn")?,
            end_lsn: cursor.lsn("StreamCommit.end_lsn")?,
            commit_time: cursor.i64("StreamCommit.commit_time")?,
        })
    }
}

impl StreamAbort {
    pub(super) fn decode(cursor: &mut Cursor) -> Result<StreamAbort, Error> {
        let (xid, subxid) = (cursor.u32("StreamAbort.xid")?, cursor.u32("StreamAbort.subxid")?);
        // Which of the two forms it is, only its length tells.
        let at = if cursor.is_at_end() { None } else { Some(AbortedAt::decode(cursor)?) };
        Ok(StreamAbort { xid, subxid, at })
    }
}

impl AbortedAt {
    fn decode(cursor: &mut Cursor) -> Result<AbortedAt, Error> {
        Ok(AbortedAt {
            lsn: cursor.lsn("StreamAbort.abort_lsn")?,
            time: cursor.i64("StreamAbort.abort_time")?,
        })
    }
}
