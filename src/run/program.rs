//! The program: sessions one after the other.
//!
//! A session is one replication connection with its gate, its targets and its ledger. Whatever goes
//! wrong with Postgres ends the session and the next one begins where the slot was confirmed:
//! Postgres sends again what was not, so nothing else has to be remembered. Redis may come and go
//! within a session; its sweeper sees to that, and keepalives are answered meanwhile.

use std::collections::BTreeSet;
use std::mem::replace;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::budget::OfTarget;
use crate::capture;
use crate::config::{Config, Mode, Target};
use crate::keys::{Lookup, RuleId, Rules};
use crate::lsn::Lsn;
use crate::postgres::{Endpoint, History, Sql};
use crate::preflight::{self, Finding, Fitness};
use crate::run::attempts::{Attempts, Blame, LASTING};
use crate::run::error::{Error, Verdict};
use crate::run::pipeline::Outside;
use crate::run::session::{Session, gate_is_dead, step};
use crate::run::shutdown::Shutdown;
use crate::run::targets::TargetNode;
use crate::run::task::{Task, spawn, until_either_ends};
use crate::settle::{Cache, Lookups, Relations, Rows, SqlProbe, SqlStandby};
use crate::source::between::Between;
use crate::source::own::Custody;
use crate::source::{self, slot_health::Keeper};
use crate::sweep::redis::connect;
use crate::sweep::{Broken, Cluster, Doubt, Look, Room, Settings, Standalone};
use crate::telemetry::metrics::{Metrics, PeerLabel};
use crate::telemetry::{Health, Phase, Topic};

/// How long the start waits for Redis to be looked at.
const REDIS_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that the program lends to every session.
pub struct Program<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Its rules, compiled.
    pub rules: &'a Rules,
    /// The state that `/readyz` tells.
    pub health: &'a Arc<Health>,
    /// All metrics.
    pub metrics: &'a Arc<Metrics>,
    /// The wish to stop.
    pub shutdown: &'a mut Shutdown,
    /// Whether a rule that does not fit its table keeps everything from running.
    pub is_strict: bool,
}

/// Everything that one session leaves for the next.
struct Course {
    attempts: Attempts,
    /// Whether a session ever began.
    established: bool,
    standing_by: bool,
    /// Whether this process made the slot, and why the next session gives it up.
    custody: Rc<Custody>,
    /// Where a session began that could not read a transaction in blocks; until one begins further
    /// on, transactions are read whole.
    whole_at: Option<Lsn>,
    /// How the last session, or attempt at one, ended.
    ended: String,
    /// Keys that a session put in doubt which are not swept yet as far as is known.
    doubt: Doubt,
    /// The server's process that served the last session's stream, which may outlive it.
    walsender: Option<i32>,
    /// The rules whose `when` failed, which is told once.
    failed: BTreeSet<RuleId>,
}

impl Default for Course {
    fn default() -> Course {
        Course {
            attempts: Attempts::default(),
            established: false,
            standing_by: false,
            custody: Rc::default(),
            whole_at: None,
            ended: String::new(),
            doubt: Doubt::none(),
            walsender: None,
            failed: BTreeSet::new(),
        }
    }
}

impl Course {
    /// The slot is in use; says whether that is news. What it holds is another's matter from the
    /// second time on, unless that is the end of our own last session, which the server has not
    /// noticed.
    fn finds_in_use(&mut self, error: &Error) -> bool {
        let is_news = !replace(&mut self.standing_by, true);
        if !error.is_held_by(self.walsender) {
            self.custody.lost();
            if !is_news {
                self.attempts = self.attempts.stands_by();
                self.custody.give_up.set(None);
            }
        }
        is_news
    }
}

impl Program<'_> {
    /// Runs sessions until asked to stop, or until a person is needed. Needs a
    /// [`LocalSet`](tokio::task::LocalSet) around it.
    ///
    /// # Errors
    ///
    /// What a person has to look at; everything else is tried again.
    pub async fn run(&mut self) -> Result<(), Error> {
        self.check_redis().await?;
        let mut course = Course::default();
        let mut between = self.between(&course);
        loop {
            if course.standing_by {
                tokio::select! {
                    biased;
                    () = self.shutdown.requested() => {
                        tracing::info!("stopped while another process has the slot");
                        return Ok(());
                    }
                    () = self.health.alive_while(between.until_free()) => {}
                }
            }
            let wait = if course.standing_by { Duration::ZERO } else { course.attempts.wait() };
            let is_stuck = course.attempts.must_give_up();
            if is_stuck && course.custody.give_up.get().is_none() {
                course.custody.give_up.set(Some(Broken::SlotUndecodable));
            }
            let (custody, whole) = (&course.custody, course.whole_at.is_some());
            let attempt = Box::pin(async {
                sleep(wait).await;
                let told = (self.health.as_ref(), self.is_strict, !course.established);
                Session::open(self.config, self.rules, told, custody, whole).await
            });
            let opened = tokio::select! {
                biased;
                () = self.shutdown.requested() => {
                    tracing::info!("stopped before there was a session with postgres");
                    return Ok(());
                }
                opened = self.health.alive_while(attempt) => opened,
                never = between.watch() => match never {},
            };
            if is_stuck && course.custody.give_up.get().is_none() {
                course.attempts.gave_up();
            }
            let outcome = match opened {
                Ok(session) => {
                    drop(between);
                    let outcome = self.stand(session, &mut course).await;
                    between = self.between(&course);
                    outcome
                }
                Err(error) => {
                    course.attempts.came_to_nothing(error.is_unreachable());
                    Err((error, "no session with postgres"))
                }
            };
            let Err((error, what)) = outcome else { return Ok(()) };
            self.ended(error, what, &mut course)?;
        }
    }

    /// No session stands from now on.
    fn between(&self, course: &Course) -> Between {
        self.health.sees_nothing();
        let watched = (self.health, self.metrics);
        Between::new(self.config, watched, Rc::clone(&course.custody))
    }

    /// Runs a session that was opened to its end, and keeps in mind how it ended.
    async fn stand(
        &mut self,
        mut session: Session,
        course: &mut Course,
    ) -> Result<(), (Error, &'static str)> {
        let (start, began) = (session.expected.lsn, Instant::now());
        // Tables may be again what they were, and were something else meanwhile.
        session.doubt = course.doubt.clone();
        course.whole_at = course.whole_at.filter(|at| *at == start);
        (course.established, course.standing_by) = (true, false);
        course.walsender = session.walsender;
        self.metrics.postgres_up.set(1);
        let mut wait = Duration::ZERO;
        if course.attempts.get_nowhere() {
            wait = LASTING;
            let text = format!("a session stands; those before it ended soon: {}", course.ended);
            self.health.trouble(Topic::Session, &text, None);
        }
        let health = Arc::clone(self.health);
        let settled = spawn(async move {
            sleep(wait).await;
            health.over(&Topic::Session);
            health.gets_nowhere(false);
        });
        let outcome = Box::pin(self.session(session, course)).await;
        drop(settled);
        if self.health.phase() == Phase::Streaming {
            course.doubt = Doubt::none();
        }
        self.metrics.no_session();
        let Err(error) = outcome else { return Ok(()) };
        self.metrics.reconnects.get_or_create(&PeerLabel { peer: "postgres" }).inc();
        // A session that ends by our own wish is none that failed, however short it was.
        let stood = if error.is_intended() { LASTING } else { began.elapsed() };
        let blame = match error.blames_slot() {
            _ if error.condemns_slot() => Blame::Certain,
            true => Blame::Perhaps,
            false => Blame::None,
        };
        course.attempts.session_ended(start, stood, blame);
        if let Error::Source(source::Error::TablesChanged(doubt)) = &error {
            course.doubt = replace(&mut course.doubt, Doubt::none()).and(doubt.clone());
        }
        if error.wants_whole() {
            course.whole_at = Some(start);
        }
        if matches!(error, Error::Source(source::Error::RetainedWal(_))) {
            course.custody.give_up.set(Some(Broken::RetainedWal));
        }
        let what = if error.is_intended() {
            "a new session with postgres begins"
        } else {
            "the session with postgres ended"
        };
        Err((error, what))
    }

    /// A session could not be had, or ended: says so, unless a person is needed.
    fn ended(&self, error: Error, what: &str, course: &mut Course) -> Result<(), Error> {
        let may_pass = course.established || error.may_be_switchover(&self.config.postgres);
        match error.verdict(may_pass) {
            Verdict::Halt => return Err(error),
            Verdict::Standby => {
                if course.finds_in_use(&error) {
                    tracing::info!(holder = %error, "standing by: the slot is in use");
                }
                self.health.stands_by(error.to_string());
                self.health.over(&Topic::Session);
                self.health.gets_nowhere(false);
                self.health.unconfirmed(None);
            }
            Verdict::Retry => {
                course.standing_by = false;
                let again =
                    if course.attempts.get_nowhere() { " soon, again and again" } else { "" };
                let within = match course.attempts.longest_wait().as_secs() {
                    _ if error.is_intended() => String::new(),
                    seconds => format!("; trying again within {seconds} s"),
                };
                let text = format!("{what}{again}: {error}{within}");
                course.ended = error.to_string();
                tracing::debug!(wait = ?course.attempts.wait(), "{text}");
                self.health.set(Phase::Connecting);
                match &error {
                    Error::Source(source::Error::TablesChanged(_))
                        if !course.attempts.get_nowhere() =>
                    {
                        let hint = error.hint();
                        self.health.interruption(Topic::Session, &text, hint.as_deref());
                    }
                    _ => self.health.trouble(Topic::Session, &text, error.hint().as_deref()),
                }
                self.health.gets_nowhere(course.attempts.get_nowhere());
                self.health.sees_nothing();
            }
        }
        Ok(())
    }

    /// Refuses a Redis that `check` refuses, if it can be reached now; one that cannot is looked at
    /// when it comes. Of several targets one that is refused, or slow to log in, keeps none of the
    /// others from its keys: it is looked at again when its connection is made, and told of.
    async fn check_redis(&mut self) -> Result<(), Error> {
        let (health, is_strict) = (self.health, self.is_strict);
        let check_one = async |target: Target| {
            let fitness = Fitness::new(target.clone(), Arc::clone(health));
            match connect::connect(&target.redis).await {
                Ok(mut connection) => {
                    Fitness::look_elsewhere(&target, &mut connection).await;
                    let findings = fitness.refusals(&mut connection, is_strict).await;
                    let place = preflight::place(&target, &mut connection).await;
                    (findings, place.map(|place| (target, place)))
                }
                Err(error) => {
                    (preflight::login_refused(&target, &error).into_iter().collect(), None)
                }
            }
        };
        let check = async |target: Target| {
            let servers = match preflight::redis_servers(&target).await {
                Ok(servers) => servers,
                // One that can be reached later, or that a person has to mend: the first of its
                // servers says which.
                Err(_finding) => vec![target],
            };
            let all = join_all(servers.into_iter().map(&check_one)).await;
            let (findings, places): (Vec<Vec<Finding>>, Vec<_>) = all.into_iter().unzip();
            (findings.concat(), places)
        };
        let within = |target: Target| {
            let patience = match target.redis.is_alone {
                true => target.redis.password.patience(),
                false => Duration::ZERO,
            };
            timeout(REDIS_CHECK_TIMEOUT + patience, check(target))
        };
        let looked = tokio::select! {
            biased;
            () = self.shutdown.requested() => Vec::new(),
            looked = join_all(self.config.targets().map(within)) => looked,
        };
        let count = looked.len();
        let (findings, places): (Vec<Vec<Finding>>, Vec<_>) = looked.into_iter().flatten().unzip();
        let refused = findings.iter().filter(|findings| !findings.is_empty()).count();
        let mut findings = findings.concat();
        if refused < count && !self.is_strict {
            findings.clear();
        }
        findings.extend(preflight::twice(places.into_iter().flatten().flatten()));
        if findings.is_empty() { Ok(()) } else { Err(Error::Refused(findings)) }
    }

    /// Runs one session to its end.
    async fn session(&mut self, session: Session, course: &mut Course) -> Result<(), Error> {
        let Session { config, gate, server, witness, slot, .. } = session;
        let Session { expected, wal_end, prints, broken, doubt, timing, .. } = session;
        let (looks, custody) = (session.watch, &course.custody);
        let mut bound = session.rules.with_failed(course.failed.clone());
        tracing::info!(
            slot = self.config.postgres.slot,
            from = %expected.lsn,
            timeline = expected.timeline,
            "streaming"
        );
        let (system_id, timeline) = (expected.system_id.clone(), expected.timeline);
        self.health.trail().begins(&format!("{system_id}/{timeline}"));
        let history = History { system_id, timeline };
        let standby = |endpoint: &Endpoint| SqlStandby::new(endpoint.clone(), history.clone());
        let standbys = self.config.postgres.replicas.iter().map(standby).collect();
        let (asked, lookups) = ((&gate, &server.primary), bound.lookups());
        let prepared = self.prepare(&config, history.clone(), lookups, asked).await?;
        let Some((lookups, probe)) = prepared else { return Ok(()) };
        let (lookups, _opening) = lookups.unzip();
        let (adopt, prints) = watch::channel(Rc::new(prints));
        let settings = Settings {
            max_stall: self.config.sweep.max_stall,
            max_load: self.config.sweep.max_load,
            window: self.config.refill.window,
            expected,
            wal_end,
            prints,
            broken,
            doubt,
            empty: self.rules.key_set(),
            room: Room::of(self.config.redis.len()),
        };
        let fitness = |target| Rc::new(Fitness::new(target, Arc::clone(self.health)));
        let fitness: Vec<Rc<Fitness>> = self.config.targets().map(fitness).collect();
        let nodes = fitness.iter().map(|fitness| self.node(fitness)).collect();
        let primary = Rc::clone(&server.primary);
        let probe = probe.with_fences(primary, Relations::of_rules(self.rules));
        let outside = Outside { slot, witness, probe, standbys, nodes, lookups };
        // A task: what wakes for each commit would otherwise poll all of this, too.
        let mut beside = spawn({
            let (server, health) = (server.clone(), Arc::clone(self.health));
            let keeper = Keeper::new(&config, custody, (self.health, self.metrics));
            async move {
                let watching = join_all(fitness.iter().map(|fitness| fitness.watch()));
                tokio::select! {
                    error = keeper.watch(&server) => error.into(),
                    error = looks.run(&config, &health, &adopt) => error.into(),
                    error = gate_is_dead(&gate) => error,
                    nevers = watching => match nevers.into_iter().next() {
                        Some(never) => match never {},
                        None => Error::Stage("sweep"),
                    },
                }
            }
        });
        let (watched, mut shutdown) = ((self.health, self.metrics), self.shutdown.clone());
        let stages = outside.run((settings, timing), &mut bound, watched, self.shutdown);
        let outcome = until_either_ends(Box::pin(stages), &mut beside, &shutdown).await;
        course.failed = bound.failed();
        match outcome {
            Err(Error::Source(source::Error::Capture(error))) if error.lacks_publication() => {
                tokio::select! {
                    biased;
                    () = shutdown.requested() => Ok(()),
                    judged = self.judge_slot(error, &server.sql) => Err(judged),
                }
            }
            outcome => outcome,
        }
    }

    /// The Redis of a target, as it is configured; a server is looked at before it is used.
    fn node(&self, fitness: &Rc<Fitness>) -> Box<dyn TargetNode> {
        let Target { redis, slot, refill, .. } = fitness.target();
        let fitness = Rc::clone(fitness);
        let look: Look = Rc::new(move |connection| {
            let fitness = Rc::clone(&fitness);
            Box::pin(async move { fitness.look(connection).await }) as Pin<Box<_>>
        });
        let count = self.config.redis.len();
        let share = OfTarget::of(count).names;
        let index = self
            .config
            .sweep
            .index
            .map(|bytes| (self.rules.own_patterns().of_target(redis.id), bytes / count, share));
        if matches!(redis.mode, Mode::Cluster { .. }) {
            if index.is_some() {
                let title = redis.title();
                tracing::warn!("{title} is a cluster: there is no index, patterns go by SCAN");
            }
            return Box::new(Cluster::new(redis, slot).looked_at(look));
        }
        let mut node = Standalone::new(redis, slot);
        if refill.observe && !refill.window.is_zero() {
            node = node.observing(self.rules.everything().of_target(redis.id), share);
        }
        if let Some((patterns, index_bytes, bytes)) = index {
            node = node.indexing(patterns, index_bytes, bytes);
        }
        Box::new(node.looked_at(look))
    }

    /// The server found no publication at a place of its log. If there is one now that is younger
    /// than what the slot still has to decode, no session gets past that place.
    async fn judge_slot(&self, cause: capture::Error, sql: &Sql) -> Error {
        match step(preflight::before_publication(self.config, sql)).await {
            Ok(findings) if !findings.is_empty() => {
                let publication = self.config.postgres.publication.clone();
                Error::SlotBeforePublication { publication, cause }
            }
            _ => cause.into(),
        }
    }
}

/// Who reads rows, and who opens their cache.
type Reading = Option<(Lookups, Option<Task<()>>)>;

impl Program<'_> {
    /// Asks for all that a session needs before its stages run; gives `None` if a stop is asked for
    /// meanwhile. A server that falls silent here holds up neither a stop nor the next session.
    async fn prepare(
        &self,
        config: &Config,
        history: History,
        lookups: &[Lookup],
        (gate, primary): (&Rc<Sql>, &Rc<Sql>),
    ) -> Result<Option<(Reading, SqlProbe)>, Error> {
        let mut shutdown = self.shutdown.clone();
        let prepared = async {
            let lookups = Box::pin(self.lookups(config, history, lookups, primary)).await?;
            Ok::<_, Error>((lookups, SqlProbe::new(Rc::clone(gate)).await?))
        };
        tokio::select! {
            biased;
            () = shutdown.requested() => Ok(None),
            prepared = step(prepared) => prepared.map(Some),
        }
    }

    /// Who reads rows, if rules name lookups, and who opens their cache.
    async fn lookups(
        &self,
        config: &Config,
        history: History,
        lookups: &[Lookup],
        sql: &Rc<Sql>,
    ) -> Result<Reading, Error> {
        if lookups.is_empty() {
            return Ok(None);
        }
        let (endpoint, health) = (config.postgres.endpoint.clone(), Arc::clone(self.health));
        let rows = Rows::new(endpoint, history, lookups, health);
        let cache = Cache::new(lookups);
        let opening = match cache.clone() {
            Some(cache) => {
                let (fences, read) = (Rc::clone(sql), Relations::of_lookups(lookups));
                let probe = SqlProbe::new(Rc::clone(sql)).await?.with_fences(fences, read);
                Some(spawn(cache.open(probe)))
            }
            None => None,
        };
        Ok(Some((Lookups::new(rows, cache), opening)))
    }
}

#[cfg(test)]
mod tests {
    use super::Course;
    use crate::run::error::Error;
    use crate::sweep::Broken;

    fn held_by(pid: i32) -> Error {
        let name = "walsweep stream".to_owned();
        Error::SlotInUse { pid: pid.to_string(), name, address: None }
    }

    /// A server may take a minute to notice that our last session is gone. What made us give up the
    /// slot then holds as before; of another process's slot we know nothing.
    #[test]
    fn our_own_old_stream_takes_no_decision_back_and_another_process_does() {
        for (holder, stays) in [(7, true), (8, false)] {
            let mut course = Course { walsender: Some(7), ..Course::default() };
            course.custody.give_up.set(Some(Broken::SlotUndecodable));
            assert!(course.finds_in_use(&held_by(holder)), "news");
            assert!(course.custody.give_up.get().is_some(), "it may have been our own");
            for _ in 0..3 {
                assert!(!course.finds_in_use(&held_by(holder)), "no news");
            }
            assert_eq!(course.custody.give_up.get().is_some(), stays, "process {holder}");
        }
    }
}
