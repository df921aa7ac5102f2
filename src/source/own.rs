//! Whose the slot is: what has to be shown before `run` drops one.
//!
//! A slot bears no mark, neither an owner nor a comment, and what another program has not read of
//! its own is lost for good once that is dropped. `run` reads whatever slot the configuration
//! names, as the operator wants it to. It drops one only with an [`Own`], which this file alone
//! makes, of one of three proofs:
//!
//! - the comment on walsweep's own publication claims the slot, as whoever made it wrote there;
//! - this process made it, and has not seen it gone, or with somebody else, since;
//! - Redis has a watermark of this slot and this cluster that is not behind the slot's
//!   `confirmed_flush_lsn`: walsweep writes it before it confirms, so nobody else moved the slot.
//!   One that was made anew under the same name begins behind whatever was confirmed before; and a
//!   watermark beyond the end of the log, or beyond where this server left its timeline, is of a
//!   history that a restored server has not. Before the first one a note says where the slot was
//!   made, and counts while it stands there.
//!
//! A Redis that does not answer shows nothing. Then one is enough for `run` that the comment wanted
//! under this name, or `max_retained_wal` would not hold where `setup` may make no slot. What
//! comment and watermark come to together is [`weigh`]ed in one place, for `run`, `check`, `setup`
//! and `teardown`.

use std::cell::Cell;
use std::rc::Rc;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;

use crate::capture::Replication;
use crate::config::{Config, Postgres, SlotOn};
use crate::lsn::Lsn;
use crate::postgres::statement::render;
use crate::postgres::{Sql, connect_sql, identify};
use crate::preflight::{self, Code, Finding, Memory, Record, Severity};
use crate::source::said::{Said, ask_redis};
use crate::source::slot_health::SAMPLE_TIMEOUT;
use crate::source::slot_server::{NAME, SlotServer};
use crate::source::{Error, within};
use crate::sweep::{Broken, Watermark, key_name, note_made};
use crate::telemetry::{Health, Topic};

/// Everything that a process keeps in mind of its slot, over all its sessions.
#[derive(Debug, Default)]
pub struct Custody {
    /// Why the slot is to be given up for a new one; taken back once that is done.
    pub give_up: Cell<Option<Broken>>,
    is_made: Cell<bool>,
    /// Whether nothing showed whose it is when walsweep began to read it, be it in this process.
    of_stranger: Cell<bool>,
    /// Where it stood when this process began to read it, if nothing showed then whose it is.
    strange_at: Cell<Option<Lsn>>,
    is_told: Cell<bool>,
}

impl Custody {
    /// This process has just made the slot.
    pub fn made(&self) {
        self.is_made.set(true);
        self.of_stranger.set(false);
        self.strange_at.set(None);
    }

    /// Whether this process made the slot, and has not seen it gone since.
    #[must_use]
    pub fn has_made(&self) -> bool {
        self.is_made.get()
    }

    /// This process begins to read a slot that stands at `confirmed`, and of which nothing shows
    /// whose it is. The watermark that it will write at this place shows nothing either.
    fn reads_stranger(&self, confirmed: Lsn) {
        self.of_stranger.set(true);
        self.strange_at.set(Some(confirmed));
    }

    /// This process begins to read a slot that stands at `confirmed`, as was found of it.
    pub fn begins(&self, whose: &Whose, confirmed: Lsn) {
        match whose {
            Whose::Open => self.reads_stranger(confirmed),
            // A process before this one began so.
            Whose::Taken => self.of_stranger.set(true),
            Whose::Ours | Whose::Unanswered | Whose::InUse(..) => {}
        }
    }

    /// Whether nothing showed whose the slot is when walsweep began to read it: the watermark says
    /// so, for whoever weighs it.
    #[must_use]
    pub fn is_of_stranger(&self) -> bool {
        self.of_stranger.get()
    }

    /// The slot is gone, or another process has it: whichever is there next, somebody else may
    /// have made.
    pub fn lost(&self) {
        self.is_made.set(false);
    }
}

/// Shows that a slot is walsweep's, as it stood when that was asked.
#[derive(Debug)]
pub struct Own {
    slot: String,
    confirmed: Lsn,
}

/// The connection over which a slot is dropped.
pub enum Over<'a> {
    /// A replication connection to the server that the slot is on.
    Replication(&'a mut Replication),
    /// An ordinary one to the same server.
    Sql(&'a Client),
}

/// The owner of a slot, as comment and watermark show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It is this walsweep's.
    Own,
    /// It is what this walsweep's configuration names, and either the comment or the watermark says
    /// that it is walsweep's, or is to be, but not both: `run` goes by one of them, for nobody is
    /// there to ask. `teardown`, whose person can be told, does not.
    Half,
    /// It may be another program's.
    Not,
}

/// Weighs what the comment on walsweep's own publication says of a slot against the watermark:
///
/// | the watermark | claimed | wanted | no record |
/// |---|---|---|---|
/// | reaches the slot | own | own: `run` made it | half: perhaps another publication's |
/// | reaches it, begun as a stranger's | own | half: somebody made it meanwhile | half |
/// | is this process's first | own | not | not |
/// | is not there | own | not: nobody has confirmed it | not |
/// | is asked for, and Redis is silent | own | half: the comment wanted one of this name | not |
/// | is behind, or of another history | half: made anew, or something went back | not | not |
///
/// `run` may drop what is its own, or half; `teardown` only what is its own.
#[must_use]
pub fn weigh(record: Record, said: &Said) -> Shown {
    match (record, said) {
        (Record::Claimed, Said::Behind(_) | Said::Ahead(_))
        | (Record::Wanted, Said::Taken(_) | Said::Unanswered(_))
        | (Record::Nothing, Said::Read(_) | Said::Taken(_)) => Shown::Half,
        (Record::Claimed, _) | (Record::Wanted, Said::Read(_)) => Shown::Own,
        (Record::Wanted | Record::Nothing, _) => Shown::Not,
    }
}

/// A slot of the configured name.
struct Found {
    /// Whether it is of the kind of walsweep's and of this database.
    is_fit: bool,
    /// A description of it for messages.
    what: String,
    confirmed: Lsn,
    /// Who reads it: the process on the server, and its `application_name`.
    reader: Option<(i32, String)>,
}

/// The slot of the configured name on the server behind `client`, if there is one.
async fn find(config: &Config, client: &Client) -> Result<Option<Found>, tokio_postgres::Error> {
    let query = include_str!("../../sql/setup/slot_holder.sql");
    let Some(row) = client.query_opt(query, &[&config.postgres.slot]).await? else {
        return Ok(None);
    };
    let confirmed: &str = row.try_get(4)?;
    let confirmed = confirmed.parse().unwrap_or_default();
    let (pid, name): (Option<i32>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let reader = pid.map(|pid| (pid, name.unwrap_or_default()));
    Ok(Some(Found { is_fit: row.try_get(2)?, what: row.try_get(3)?, confirmed, reader }))
}

/// Why it is not shown that the slot is walsweep's.
struct Unshown {
    found: Found,
    /// Who owns the publication, if that is walsweep's.
    owner: Option<String>,
    said: Said,
}

/// Asks for one of the proofs; `None` without a slot.
async fn show(
    config: &Config,
    custody: &Custody,
    server: &SlotServer,
) -> Result<Option<Result<Own, Unshown>>, tokio_postgres::Error> {
    let slot = &config.postgres.slot;
    let Some(found) = find(config, &server.sql).await? else { return Ok(None) };
    let own = || Own { slot: slot.clone(), confirmed: found.confirmed };
    if !found.is_fit {
        return Ok(Some(Err(Unshown { found, owner: None, said: Said::Nothing })));
    }
    if custody.is_made.get() {
        return Ok(Some(Ok(own())));
    }
    let (owner, memory) = recorded(config, &server.primary).await?;
    let history = identify(&server.primary).await?.history;
    let said = match history {
        Some(history) => ask_redis(config, (&server.primary, &history), found.confirmed).await?,
        None => Said::Nothing,
    };
    let is_unmoved = custody.strange_at.get().is_some_and(|at| found.confirmed <= at);
    let said = match said {
        Said::Read(lsn) | Said::Taken(lsn) if is_unmoved => Said::Unmoved(lsn),
        said => said,
    };
    if weigh(record_of(memory.as_ref(), slot), &said) != Shown::Not {
        return Ok(Some(Ok(own())));
    }
    let owner = owner.filter(|_| memory.is_some());
    Ok(Some(Err(Unshown { found, owner, said })))
}

/// The evidence that the slot, which has to go because of `why`, may be dropped. `None` if there is
/// none: that is told, until there is, with what a person can do.
///
/// # Errors
///
/// A query's; no answer in time.
pub async fn evidence(
    config: &Config,
    custody: &Custody,
    health: &Health,
    server: &SlotServer,
    why: &str,
) -> Result<Option<Own>, Error> {
    let unshown = match within(SAMPLE_TIMEOUT, show(config, custody, server)).await? {
        Some(Ok(own)) => {
            custody.is_told.set(false);
            health.over(&Topic::SlotOwner);
            return Ok(Some(own));
        }
        Some(Err(unshown)) => unshown,
        None => return Ok(None),
    };
    let (text, hint) = told(&config.postgres, &unshown, why);
    if !custody.is_told.replace(true) {
        let slot = &config.postgres.slot;
        tracing::error!(slot, why, "the slot is not dropped: it may be another program's");
    }
    health.trouble(Topic::SlotOwner, &text, Some(&hint));
    Ok(None)
}

/// Gives the text about a slot that has to go and may be another program's, and what a person can
/// do.
fn told(config: &Postgres, unshown: &Unshown, why: &str) -> (String, String) {
    let Postgres { slot, publication, .. } = config;
    let Unshown { found: Found { is_fit, what, confirmed, .. }, owner, said } = unshown;
    let other = "if another program reads it, let `postgres.slot` name another one";
    if !is_fit {
        let text = format!("slot `{slot}` {why}, and is not dropped: it is {what}");
        return (text, other.to_owned());
    }
    let text = format!(
        "slot `{slot}` {why}, and is not dropped, for it may be another program's: publication \
         `{publication}` does not record it as walsweep's, this process did not make it, and of \
         its confirmed_flush_lsn {confirmed} {said}"
    );
    let drop = preflight::drop_slot(slot);
    let (role, place) = match config.slot_on {
        SlotOn::Primary => (&config.replication_endpoint.user, ""),
        SlotOn::Standby => (&config.replication_endpoint.user, " on the standby"),
    };
    let mut hint = format!(
        "{other}; if none does, stop walsweep, drop it{place} as `{role}`, or as another role with \
         REPLICATION: `{drop};`, and start walsweep, which makes it anew and sweeps everything"
    );
    if let Some(owner) = owner {
        hint.push_str(&format!(
            "; or record it as `{owner}`, who owns the publication, or as a superuser: `walsweep \
             check` prints the SQL"
        ));
    }
    if let Said::Unanswered(_) = said {
        hint.insert_str(0, "see that Redis runs and lets walsweep in; ");
    }
    (text, hint)
}

/// Drops the slot. The evidence is used up by it.
///
/// # Errors
///
/// [`Error::SlotNotOwn`]: it is not where it was any more, and stays. The statement's; no answer in
/// time.
pub async fn drop_slot(own: Own, over: Over<'_>) -> Result<(), Error> {
    let Own { slot, confirmed } = own;
    let (name, confirmed) = (escape_literal(&slot), escape_literal(&confirmed.to_string()));
    let file = include_str!("../../sql/drop_own_slot.sql");
    let statement = render(file, &[("slot", name.trim_start()), ("confirmed", &confirmed)]);
    let is_dropped = match over {
        Over::Sql(client) => {
            within(SAMPLE_TIMEOUT, client.query_opt(&statement, &[])).await?.is_some()
        }
        Over::Replication(replication) => {
            let doing = format!("drop slot `{slot}`");
            let dropping = replication.query_row(&doing, &statement);
            !within(SAMPLE_TIMEOUT, dropping).await?.is_empty()
        }
    };
    if is_dropped { Ok(()) } else { Err(Error::SlotNotOwn(slot)) }
}

/// Lets what `check` found of a lost slot say what `run` does with it: one that is not shown to be
/// walsweep's stays, and is waited for. Nothing changes where that cannot be asked.
pub async fn hold_lost(config: &Config, primary: &Rc<Sql>, findings: &mut [Finding]) {
    let Some(finding) = findings.iter_mut().find(|one| one.code == Code::SlotLost) else { return };
    let Ok(server) = SlotServer::reach(&config.postgres, Rc::clone(primary)).await else { return };
    let custody = Custody::default();
    let asked = within(SAMPLE_TIMEOUT, show(config, &custody, &server)).await;
    if let Ok(Some(Err(unshown))) = asked {
        let name = format!("slot `{}` ", config.postgres.slot);
        let why = finding.message.strip_prefix(&name).unwrap_or("is lost");
        let (text, hint) = told(&config.postgres, &unshown, why);
        *finding = Finding::error(Code::SlotNotOwn, text).hint(hint);
    }
}

/// Whose a slot is that is about to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Walsweep's, as is shown; or there is none yet.
    Ours,
    /// Nothing shows it; it is read if the findings do not refuse it.
    Open,
    /// Nothing showed it when walsweep began with it; it has read it since, as Redis shows.
    Taken,
    /// Redis would show it, and does not answer.
    Unanswered,
    /// Nothing shows it, and somebody reads it: the process on the server, and its
    /// `application_name`. Another walsweep that has just made it may be among those.
    InUse(i32, String),
}

/// Holds what is found of a slot that nothing claims against Redis, which is asked of no other
/// slot; gives whose it is.
/// Nothing but a word is said of one that the comment has as wanted, or that
/// nothing can claim: `run` reads what the configuration names. Where `setup` was at work for the
/// publication and has no record of the slot, one that was not read is probably another program's:
/// an error, so that `run` does not begin with it.
pub async fn hold_against_redis(
    config: &Config,
    primary: &Client,
    findings: &mut [Finding],
) -> Whose {
    let is_unclaimed = |one: &&mut Finding| one.code == Code::SlotUnclaimed;
    let Some(finding) = findings.iter_mut().find(is_unclaimed) else { return Whose::Ours };
    let asked = asked(config, primary).await.unwrap_or_default();
    judge(&config.postgres, finding, &asked)
}

/// The answers of the comment and Redis about a slot.
struct Asked {
    /// Who owns the publication, if there is one.
    owner: Option<String>,
    record: Record,
    /// Whether another publication of walsweep's records it, or may.
    is_recorded_beside: bool,
    /// `None` if Redis does not answer.
    said: Option<Said>,
    reader: Option<(i32, String)>,
}

impl Default for Asked {
    fn default() -> Asked {
        let (record, is_recorded_beside) = (Record::Nothing, true);
        Asked { owner: None, record, is_recorded_beside, said: None, reader: None }
    }
}

/// Lets the finding about a slot that nothing claims say what the watermark adds to it.
fn judge(config: &Postgres, finding: &mut Finding, asked: &Asked) -> Whose {
    let Postgres { slot, publication, .. } = config;
    let Asked { owner, record, is_recorded_beside, said, reader } = asked;
    let (record, owner) = (*record, owner.as_deref().unwrap_or_default());
    let is_recorded_elsewhere = finding.severity == Severity::Warning;
    let whose = match said {
        Some(Said::Read(_)) => Whose::Ours,
        Some(Said::Taken(_)) => Whose::Taken,
        _ if let (true, Some((pid, name))) = (is_recorded_elsewhere, reader) => {
            Whose::InUse(*pid, name.clone())
        }
        None if is_recorded_elsewhere => Whose::Unanswered,
        _ => Whose::Open,
    };
    match (is_recorded_elsewhere, &whose) {
        (true, Whose::Open) => {
            finding.severity = Severity::Error;
            finding.message.push_str(
                "; nor does a watermark in this redis show that walsweep read it up to where it \
                 stands",
            );
        }
        (true, Whose::Ours | Whose::Taken) => {
            finding.message = format!(
                "slot `{slot}` is not recorded as walsweep's on publication `{publication}`: only \
                 its watermark in redis shows that it is; if redis is emptied, the next start \
                 refuses it"
            );
            if whose == Whose::Ours && !is_recorded_beside {
                // Nobody has moved it since walsweep read it, nor was it anybody's before. That one
                // may have another publication, and this configuration be a copy.
                finding.is_done_by_setup = true;
                let hint = finding.hint.take().unwrap_or_default();
                finding.hint =
                    Some(format!("`walsweep setup` of `{owner}` records it; or else: {hint}"));
            }
        }
        (false, Whose::Ours) if record == Record::Wanted => {
            finding.message = format!(
                "slot `{slot}`, which `walsweep setup` left to `walsweep run`, was made and read \
                 by it, as the watermark in redis shows, and publication `{publication}` does not \
                 record that yet: `walsweep setup` does, with the login of whoever owns it"
            );
            // Who makes the slot need not be one who may write the comment.
            finding.is_done_by_setup = true;
            finding.hint =
                Some("the SQL that does it is for that owner, or a superuser".to_owned());
        }
        (true, Whose::InUse(..)) => finding.message.push_str(
            "; `walsweep run` stands by as long as it is read, and asks again then whose it is",
        ),
        (false, Whose::Ours) | (true, Whose::Unanswered) => {}
        (false, Whose::Taken) if record == Record::Nothing => {}
        (false, _) => {
            finding.severity = Severity::Warning;
            if record == Record::Wanted && said.is_none() {
                finding.message.push_str(&format!(
                    ". redis does not answer; once it shows that `run` made the slot and read it, \
                     the next `walsweep setup` of `{owner}`, who owns the publication, claims it"
                ));
            }
        }
    }
    whose
}

/// Why a slot must not be made now: its record is in Redis alone, beside others in the comment, and
/// Redis takes no writes. A start after it would refuse the slot, which keeps WAL.
///
/// # Errors
///
/// A query's; no answer in time.
pub async fn is_unshown_if_made(config: &Config, primary: &Client) -> Result<bool, Error> {
    let slot = &config.postgres.slot;
    let (_, memory) = within(SAMPLE_TIMEOUT, recorded(config, primary)).await?;
    let is_elsewhere =
        |memory: &Memory| !memory.is_empty() && memory.record(slot) == Record::Nothing;
    if !memory.as_ref().is_some_and(is_elsewhere) {
        return Ok(false);
    }
    for redis in &config.redis {
        let key = key_name(&redis.prefix, slot);
        if Box::pin(note_made(redis, &key, &Watermark::nowhere())).await.is_ok() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Asks the comment and Redis about the slot.
async fn asked(config: &Config, primary: &Client) -> Option<Asked> {
    let standby = match config.postgres.slot_on {
        SlotOn::Primary => None,
        SlotOn::Standby => Some(connect_sql(&config.postgres.replication_endpoint, NAME).await),
    };
    let standby = standby.transpose().ok()?;
    let holder = standby.as_ref().map_or(primary, |standby| standby);
    let Found { confirmed, reader, .. } = find(config, holder).await.ok()??;
    let (owner, memory) = recorded(config, primary).await.ok()?;
    let history = identify(primary).await.ok()?.history?;
    let said = ask_redis(config, (primary, &history), confirmed).await.ok()?;
    let said = Some(said).filter(|said| !matches!(said, Said::Unanswered(_)));
    let Postgres { slot, publication, .. } = &config.postgres;
    let question = include_str!("../../sql/setup/other_comments.sql");
    let comments = primary.query(question, &[publication]).await.ok()?;
    let mut is_recorded_beside = false;
    for row in &comments {
        let comment: &str = row.try_get(0).ok()?;
        let memory = Memory::read(Some(comment));
        is_recorded_beside |= Memory::is_damaged(Some(comment))
            || record_of(memory.as_ref(), slot) != Record::Nothing;
    }
    let record = record_of(memory.as_ref(), slot);
    Some(Asked { owner, record, is_recorded_beside, said, reader })
}

/// Who owns the publication, if there is one, and what its comment remembers, if it is walsweep's.
async fn recorded(
    config: &Config,
    primary: &Client,
) -> Result<(Option<String>, Option<Memory>), tokio_postgres::Error> {
    let question = include_str!("../../sql/setup/publication_mark.sql");
    let row = primary.query_opt(question, &[&config.postgres.publication]).await?;
    let Some(row) = row else { return Ok((None, None)) };
    Ok((row.try_get(0)?, Memory::read(row.try_get(1)?)))
}

fn record_of(memory: Option<&Memory>, slot: &str) -> Record {
    memory.map_or(Record::Nothing, |memory| memory.record(slot))
}

#[cfg(test)]
mod tests {
    use super::{Said, Shown, weigh};
    use crate::lsn::Lsn;
    use crate::preflight::Record;

    /// `run` may drop the slot whatever is shown at all, `teardown` only what is its own.
    #[test]
    fn comment_and_watermark_are_weighed_as_the_table_says() {
        use Shown::{Half, Not, Own};
        let at = Lsn(7);
        for (said, claimed, wanted, nothing) in [
            (Said::Read(at), Own, Own, Half),
            (Said::Taken(at), Own, Half, Half),
            (Said::Unmoved(at), Own, Not, Not),
            (Said::Nothing, Own, Not, Not),
            (Said::Unanswered("away".to_owned()), Own, Half, Not),
            (Said::Behind(at), Half, Not, Not),
            (Said::Ahead(at), Half, Not, Not),
        ] {
            assert_eq!(weigh(Record::Claimed, &said), claimed, "claimed, {said}");
            assert_eq!(weigh(Record::Wanted, &said), wanted, "wanted, {said}");
            assert_eq!(weigh(Record::Nothing, &said), nothing, "no record, {said}");
        }
    }
}
