//! Who has the slot: which process of the server, and whether a walsweep is behind it.
//!
//! A stand-in waits for another walsweep, and nobody removes anything if that one is gone while the
//! server's process keeps the slot: it is stopped or hangs, or has not noticed.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::postgres::statement::render;
use crate::source::slot_server;
use crate::telemetry::Cure;

/// `application_name` of the replication connection.
pub const STREAM_NAME: &str = "walsweep stream";

/// Whoever has the slot and gave no sign of life for so long is told of. A walsweep answers its
/// server every ten seconds at least.
const SILENT_MAX: Duration = Duration::from_secs(60);

/// The limit. Tests may set another with `WALSWEEP_TEST_SILENT_MS`, in builds with the feature
/// `failpoints` alone, which no release build has.
fn silent_max() -> Duration {
    let asked = match cfg!(feature = "failpoints") {
        true => std::env::var("WALSWEEP_TEST_SILENT_MS").ok(),
        false => None,
    };
    asked.and_then(|text| text.parse().ok()).map_or(SILENT_MAX, Duration::from_millis)
}

/// A process of the server that serves a stream. A number alone says little: after a restart of the
/// server another process may have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walsender {
    /// Its process id on the server.
    pub pid: i32,
    /// When it began, in seconds since 1970, if that may be seen.
    pub since: Option<String>,
}

/// The latest sign of life of whoever has the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sign {
    of: Walsender,
    /// Whether it is an answer to the server; else another connection of a walsweep asked.
    is_answer: bool,
    /// Another text each time.
    text: String,
}

/// The latest sign of life of whoever has the slot `name`; `None` if none may be seen.
pub(super) async fn sign(
    client: &Client,
    name: &str,
) -> Result<Option<Sign>, tokio_postgres::Error> {
    let query = include_str!("../../sql/holder_sign.sql");
    let params: [&(dyn ToSql + Sync); 3] = [&name, &slot_server::NAME, &STREAM_NAME];
    let Some(row) = client.query_opt(query, &params).await? else { return Ok(None) };
    let (of, is_answer) =
        (Walsender { pid: row.try_get(0)?, since: row.try_get(1)? }, row.try_get(2)?);
    let text: Option<String> = row.try_get(3)?;
    Ok(text.map(|text| Sign { of, is_answer, text }))
}

/// Whoever has the slot, and gives no sign of life.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Silent {
    pid: i32,
    is_answer: bool,
    lasts: Duration,
}

impl Silent {
    /// The words for it.
    pub(super) fn text(&self) -> String {
        let (pid, seconds) = (self.pid, self.lasts.as_secs());
        if self.is_answer {
            format!(
                "Postgres process {pid} has the slot, and nobody has answered it for {seconds} s: \
                 its walsweep is gone, or the process hangs"
            )
        } else {
            format!(
                "Postgres process {pid} has the slot, and no walsweep has been at work with it for \
                 {seconds} s: its walsweep is gone, or the process hangs"
            )
        }
    }

    /// The way out. Whether another's process is to end is for a person to say.
    pub(super) fn cure(&self) -> Cure {
        let pid = self.pid;
        let hint = format!(
            "see that no other walsweep works, and end that process: this walsweep takes over by \
             itself; if it stays, it is stopped or hangs: look at process {pid} on the server's \
             machine"
        );
        let file = include_str!("../../sql/end_holder.sql");
        Cure { hint: Some(hint), sql: Some(render(file, &[("pid", &pid.to_string())])) }
    }
}

/// The signs of life of whoever has the slot, as far as they were seen.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// The last one, and when it was seen first.
    last: Option<(Sign, Instant)>,
}

impl Signs {
    /// Takes in a look at `now`; gives who has been silent for too long by then.
    pub(super) fn look(&mut self, seen: Option<Sign>, now: Instant) -> Option<Silent> {
        let since = match &self.last {
            Some((last, since)) if Some(last) == seen.as_ref() => *since,
            _ => now,
        };
        self.last = seen.map(|sign| (sign, since));
        let (sign, lasts) = self.last.as_ref().map(|(sign, since)| (sign, now - *since))?;
        (lasts >= silent_max()).then_some(Silent {
            pid: sign.of.pid,
            is_answer: sign.is_answer,
            lasts,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Sign, Signs, Walsender};

    fn sign(pid: i32, text: &str) -> Sign {
        let of = Walsender { pid, since: Some("1.5".to_owned()) };
        Sign { of, is_answer: true, text: text.to_owned() }
    }

    #[test]
    fn whoever_gives_the_same_sign_for_a_minute_is_silent() {
        let (mut signs, start) = (Signs::default(), Instant::now());
        let mut is_silent = |second, seen: Option<Sign>| {
            signs.look(seen, start + Duration::from_secs(second)).map(|who| who.lasts.as_secs())
        };
        assert_eq!(is_silent(0, Some(sign(7, "a"))), None);
        assert_eq!(is_silent(59, Some(sign(7, "a"))), None);
        assert_eq!(is_silent(75, Some(sign(7, "a"))), Some(75));
        assert_eq!(is_silent(80, Some(sign(7, "b"))), None, "it answers");
        assert_eq!(is_silent(130, Some(sign(8, "b"))), None, "another one");
        assert_eq!(is_silent(189, Some(sign(8, "b"))), None);
        assert_eq!(is_silent(190, Some(sign(8, "b"))), Some(60));
        assert_eq!(is_silent(195, None), None, "nothing may be seen");
        assert_eq!(is_silent(255, None), None, "nothing may be seen, for however long");
        assert_eq!(is_silent(260, Some(sign(8, "b"))), None);
    }
}
