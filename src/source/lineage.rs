//! Whether a place in the log is of the history that a server has: a promotion leaves one timeline
//! for the next, and so does a restore from an older state. What was written on the old one beyond
//! that place this server does not have, however long its own log has grown since.

use crate::capture::Replication;
use crate::lsn::Lsn;
use crate::postgres::{Endpoint, History};
use crate::source::slot_server::NAME;
use crate::source::{Error, within};

use super::slot_health::SAMPLE_TIMEOUT;

/// Where a server of this history left the timeline; `None` if it never was on it. One that is
/// still on it has not left it.
///
/// # Errors
///
/// The replication connection at `endpoint`, which alone tells (`TIMELINE_HISTORY`), fails.
pub async fn left_at(
    endpoint: &Endpoint,
    history: &History,
    timeline: u32,
) -> Result<Option<Lsn>, Error> {
    if timeline == history.timeline {
        return Ok(Some(Lsn(u64::MAX)));
    }
    let asked = async {
        let mut replication = Replication::connect_to(endpoint, NAME, history).await?;
        let command = format!("TIMELINE_HISTORY {}", history.timeline);
        replication.query_row("ask for the history of the timelines", &command).await
    };
    let row = within(SAMPLE_TIMEOUT, asked).await?;
    let file = row.get(1).and_then(Option::as_deref).unwrap_or_default();
    Ok(switch(file, timeline))
}

/// Where a history file says that the timeline was left (`readTimeLineHistory`, timeline.c).
fn switch(file: &str, timeline: u32) -> Option<Lsn> {
    file.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_it = words.next()?.parse() == Ok(timeline);
        let place = words.next()?.parse().ok()?;
        is_it.then_some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::switch;
    use crate::lsn::Lsn;

    #[test]
    fn a_history_file_says_where_each_timeline_was_left() {
        let file = "# by hand\n1\t0/3000110\tno recovery target specified\n\n2\t1/A\tbefore 2026\n";
        assert_eq!(switch(file, 1), Some(Lsn(0x300_0110)));
        assert_eq!(switch(file, 2), Some(Lsn((1 << 32) + 10)));
        assert_eq!(switch(file, 3), None);
    }
}
