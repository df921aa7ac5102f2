//! The evidence that Redis has of a slot: the watermark, and the note of where the slot was made.

use std::fmt;

use tokio_postgres::Client;

use crate::config::{Config, Redis};
use crate::lsn::Lsn;
use crate::postgres::History;
use crate::source::lineage::left_at;
use crate::sweep::{key_name, made_at, standing};

/// The evidence that the watermark in Redis gives of a slot.
#[derive(Debug)]
pub enum Said {
    /// It is here, not behind the slot: walsweep read the slot, and nobody else moved it since.
    Read(Lsn),
    /// Like [`Said::Read`], but when walsweep began to read the slot, nothing showed whose it was.
    Taken(Lsn),
    /// It is here, behind the slot: somebody else moved that, or made it anew, or Redis lost the
    /// watermark's last value.
    Behind(Lsn),
    /// It is here, and of a history that this server does not have: beyond the end of its log, or
    /// beyond where it left the timeline. It was restored from an older state.
    Ahead(Lsn),
    /// It is here because this process wrote it when it began, and has not moved the slot since.
    Unmoved(Lsn),
    /// There is none of this slot's name and this cluster.
    Nothing,
    /// It could not be asked for, or not weighed; and why not.
    Unanswered(String),
}

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Read(lsn) => write!(formatter, "redis has its watermark, at {lsn}"),
            Said::Taken(lsn) => write!(
                formatter,
                "redis has its watermark, at {lsn}, and when walsweep began with the slot, nothing \
                 showed whose it was"
            ),
            Said::Behind(lsn) => write!(
                formatter,
                "the watermark in redis is behind it, at {lsn}: somebody else moved the slot, or \
                 made it anew, or redis lost what came after"
            ),
            Said::Ahead(lsn) => write!(
                formatter,
                "the watermark in redis, at {lsn}, is of a history that this server does not have: \
                 it was restored from an older state"
            ),
            Said::Unmoved(lsn) => {
                write!(formatter, "the watermark in redis, at {lsn}, says no more")
            }
            Said::Nothing => formatter.write_str("redis has no watermark of it"),
            Said::Unanswered(why) => formatter.write_str(why),
        }
    }
}

impl Said {
    /// How much it shows. What one target shows, no other takes back: none is behind what was
    /// confirmed unless it lost something. One that is silent shows nothing, and is no reason to
    /// drop what another speaks against.
    fn weight(&self) -> u8 {
        match self {
            Said::Nothing => 0,
            Said::Unanswered(_) => 1,
            Said::Ahead(_) => 2,
            Said::Behind(_) => 3,
            Said::Unmoved(_) => 4,
            Said::Taken(_) => 5,
            Said::Read(_) => 6,
        }
    }
}

/// Asks each target for the watermark of the slot, which stands at `confirmed`; `primary` is a
/// primary of this history. The slot has to be looked at before, and the end of the log is after: a
/// watermark that is in use grows meanwhile. One of before a promotion is as good as any.
///
/// # Errors
///
/// The question's to the primary.
pub async fn ask_redis(
    config: &Config,
    (primary, history): (&Client, &History),
    confirmed: Lsn,
) -> Result<Said, tokio_postgres::Error> {
    let mut best = None;
    for redis in &config.redis {
        let said = ask_target(config, redis, (primary, history), confirmed).await?;
        best = best.into_iter().chain([said]).max_by_key(Said::weight);
    }
    Ok(best.unwrap_or(Said::Nothing))
}

/// Asks one target: see [`ask_redis`].
async fn ask_target(
    config: &Config,
    redis: &Redis,
    (primary, history): (&Client, &History),
    confirmed: Lsn,
) -> Result<Said, tokio_postgres::Error> {
    let title = redis.title();
    let silent = |error| Said::Unanswered(format!("{title} does not answer: {error}"));
    // Boxed: a connection to Redis is a large future, and this one is seldom polled.
    let key = key_name(&redis.prefix, &config.postgres.slot);
    let mark = match Box::pin(standing(redis, &key)).await {
        Err(error) => return Ok(silent(error)),
        Ok(mark) => mark.filter(|mark| mark.system_id == history.system_id),
    };
    if mark.as_ref().is_none_or(|mark| mark.lsn < confirmed) {
        // The first sweep may have been stopped, of a slot that walsweep made and nobody moved;
        // there may be a watermark of the one before it.
        match Box::pin(made_at(redis, &key, &history.system_id)).await {
            Ok(made) if made == Some(confirmed) => return Ok(Said::Read(confirmed)),
            Ok(_) => {}
            Err(error) => return Ok(silent(error)),
        }
    }
    let Some(mark) = mark else { return Ok(Said::Nothing) };
    let endpoint = &config.postgres.replication_endpoint;
    let left_at = match Box::pin(left_at(endpoint, history, mark.timeline)).await {
        Ok(left_at) => left_at.unwrap_or_default(),
        Err(error) => {
            let why = format!(
                "the watermark in redis is of timeline {}, and whether this server's history has \
                 it, cannot be asked: {error}",
                mark.timeline
            );
            return Ok(Said::Unanswered(why));
        }
    };
    let row = primary.query_one(include_str!("../../sql/wal_end.sql"), &[]).await?;
    let wal_end: Lsn = row.try_get::<_, &str>(0)?.parse().unwrap_or_default();
    Ok(match mark.lsn {
        lsn if lsn > wal_end || lsn > left_at => Said::Ahead(lsn),
        lsn if lsn < confirmed => Said::Behind(lsn),
        lsn if mark.of_stranger => Said::Taken(lsn),
        lsn => Said::Read(lsn),
    })
}
