//! The program: sessions one after the other.
//!
//! A session is one replication connection with its gate, its targets and its ledger. Whatever goes
//! wrong with Postgres ends the session and the next one begins where the slot was confirmed:
//! Postgres sends again what was not, so nothing else has to be remembered. Redis may come and go
//! within a session; its sweeper sees to that, and keepalives are answered meanwhile.

use std::mem::replace;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::budget::OfTarget;
use crate::capture;
use crate::config::{Config, Mode, Target};
use crate::keys::Lookup;
use crate::postgres::{Endpoint, History, Sql};
use crate::preflight::{self, Fitness};
use crate::run::attempts::{Attempts, Blame, LASTING};
use crate::run::course::Course;
use crate::run::ended::told;
use crate::run::error::{Error, Verdict};
use crate::run::pipeline::Outside;
use crate::run::redis_checks;
use crate::run::reload::{Change, Handover, Setting};
use crate::run::session::{Prepared, Session, gate_is_dead, step};
use crate::run::shutdown::Shutdown;
use crate::run::targets::TargetNode;
use crate::run::task::{Task, spawn, until_either_ends};
use crate::settle::{Cache, Lookups, Relations, Rows, SqlProbe, SqlStandby};
use crate::source::between::{Between, has_heir};
use crate::source::{self, slot_health::Keeper};
use crate::sweep::{Broken, Cluster, Doubt, Look, Room, Settings, Standalone};
use crate::telemetry::metrics::{Metrics, PeerLabel};
use crate::telemetry::status::Facts;
use crate::telemetry::trail::Known;
use crate::telemetry::{Health, Phase, Topic};

/// Everything that the program lends to every session.
pub struct Program {
    handover: Rc<Handover>,
    /// The configuration and its rules.
    setting: Rc<Setting>,
    /// The state that `/readyz` tells.
    health: Arc<Health>,
    /// All metrics.
    metrics: Arc<Metrics>,
    /// The wish to stop.
    shutdown: Shutdown,
    /// Whether a rule that does not fit its table keeps everything from running.
    is_strict: bool,
}

impl Program {
    /// A program that runs with the present configuration of `handover`, and takes others from it.
    /// If it `is_strict`, a rule that does not fit its table keeps everything from running.
    #[must_use]
    pub fn new(
        handover: Rc<Handover>,
        (health, metrics): (Arc<Health>, Arc<Metrics>),
        shutdown: Shutdown,
        is_strict: bool,
    ) -> Program {
        let (setting, wish) = (handover.present(), handover.wish());
        let shutdown = shutdown.with_handover(wish);
        Program { handover, setting, health, metrics, shutdown, is_strict }
    }

    /// Runs sessions until asked to stop, or until a person is needed. Needs a
    /// [`LocalSet`](tokio::task::LocalSet) around it.
    ///
    /// # Errors
    ///
    /// What a person has to look at; everything else is tried again.
    pub async fn run(&mut self) -> Result<(), Error> {
        let health = Arc::clone(&self.health);
        let _watch = spawn(async move { health.standstill().watch().await });
        self.check_redis().await?;
        let mut course = Course::default();
        let mut between = self.between(&course);
        let (mut prepared, mut is_finished) = (None, true);
        loop {
            is_finished |= course.standing_by;
            if !self.handover.is_owed(is_finished)
                && let Some(change) = self.handover.take(is_finished)
            {
                prepared = self.take_over(change, &mut course);
                between = self.between(&course);
            }
            let may_change = |handover: &Handover| !handover.is_owed(is_finished);
            let mut ends = self.shutdown.clone();
            let mut changes = self.shutdown.clone();
            if course.standing_by {
                tokio::select! {
                    biased;
                    () = ends.requested() => {
                        tracing::info!("stopped while another process has the slot");
                        return Ok(());
                    }
                    _ = changes.handed_over(), if may_change(&self.handover) => continue,
                    () = self.health.alive_while(between.until_free(course.outlived.as_ref())) => {}
                }
            }
            let wait = if course.standing_by { Duration::ZERO } else { course.attempts.wait() };
            let is_stuck = course.attempts.must_give_up();
            if is_stuck && course.custody.give_up.get().is_none() {
                course.custody.give_up.set(Some(Broken::SlotUndecodable));
            }
            let attempt = Box::pin(self.attempt(wait, prepared.take(), &course));
            let opened = tokio::select! {
                biased;
                () = ends.requested() => {
                    tracing::info!("stopped before there was a session with postgres");
                    return Ok(());
                }
                _ = changes.handed_over(), if may_change(&self.handover) => continue,
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
            is_finished = matches!(outcome, Err((Error::HandedOver(_), _)));
            match outcome {
                Ok(()) => return Ok(()),
                Err((Error::HandedOver(_), _)) => {}
                Err((error, what)) => self.ended(error, what, &mut course)?,
            }
        }
    }

    /// Begins a session after a while, with what is prepared of it.
    async fn attempt(
        &self,
        wait: Duration,
        prepared: Option<Prepared>,
        course: &Course,
    ) -> Result<Session, Error> {
        sleep(wait).await;
        let Setting { config, rules, .. } = &*self.setting;
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => Prepared::new(config, rules, (self.is_strict, !course.established)).await?,
        };
        let told = (rules, &*self.health, !course.established);
        prepared.start(told, &course.custody, course.whole_at.is_some()).await
    }

    /// Goes on with another configuration. Gives what is prepared of its first session.
    fn take_over(&mut self, change: Change, course: &mut Course) -> Option<Prepared> {
        let before = replace(&mut self.setting, change.setting);
        let Setting { config, rules, .. } = &*self.setting;
        let targets = config.redis.iter().map(|redis| redis.name.clone()).collect();
        let same = rules.same_as(&before.rules);
        self.metrics = Arc::new(self.metrics.for_others(rules.names(), &same, targets));
        self.health.is_of(Arc::clone(&self.metrics));
        self.health.trail().knows(Known::of(config, rules));
        self.health.shows(Facts::of(config));
        // What stood in the way of the one before says nothing of this one.
        course.attempts = Attempts::default();
        course.failed.clear();
        // It may have another limit now. If it keeps too much still, that is found again.
        let keeps_too_much = Some(Broken::RetainedWal);
        if course.custody.give_up.get() == keeps_too_much {
            course.custody.give_up.set(None);
        }
        if !course.doubt.is_none() {
            // It tells of rules by their number, and they have others now. A table that was altered
            // within these moments is rare enough.
            course.doubt = Doubt::Everything(Broken::TablesChanged);
        }
        change.prepared.filter(|_| !course.standing_by)
    }

    /// No session stands from now on.
    fn between(&self, course: &Course) -> Between {
        self.health.sees_nothing();
        let watched = (&self.health, &self.metrics);
        Between::new(&self.setting.config, watched, Rc::clone(&course.custody))
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
        self.health.over(&Topic::Holder);
        course.walsender = session.walsender.clone();
        self.handover.begins(&session);
        self.metrics.postgres_up.set(1);
        let mut wait = Duration::ZERO;
        if course.attempts.get_nowhere() {
            wait = LASTING;
            let (seconds, ended) = (wait.as_secs(), &course.ended);
            let text = format!(
                "a session stands, and counts once it has stood for {seconds} s: those before it \
                 ended soon: {ended}"
            );
            self.health.trouble(Topic::Session, &text, None);
        }
        let health = Arc::clone(&self.health);
        let settled = spawn(async move {
            sleep(wait).await;
            health.over(&Topic::Session);
            health.gets_nowhere(false);
        });
        let outcome = Box::pin(self.session(session, course)).await;
        drop(settled);
        self.handover.stands.set(false);
        let phase = match &outcome {
            Err(Error::HandedOver(phase)) => *phase,
            _ => self.health.phase(),
        };
        if phase == Phase::Streaming {
            course.doubt = Doubt::none();
        }
        self.metrics.no_session();
        let Err(error) = outcome else { return Ok(()) };
        if matches!(error, Error::HandedOver(_)) {
            return Err((error, "the configuration is another"));
        }
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

    /// The slot is in use. By another walsweep, whose keys go: this one stands by. Or by what is
    /// left of our own last session: nobody's keys go, and nobody is told that all is well.
    fn waits_for_slot(&self, error: &Error, is_news: bool, is_outlived: bool) {
        self.health.gets_nowhere(false);
        if is_outlived {
            if is_news {
                tracing::info!(holder = %error, "waiting for the end of the last session");
            }
            self.health.set(Phase::Connecting);
            self.health.sees_nothing();
        } else {
            if is_news {
                tracing::info!(holder = %error, "standing by: the slot is in use");
            }
            self.health.stands_by(error.to_string());
            self.health.over(&Topic::Session);
            if !self.health.nobody_removes() {
                self.health.unconfirmed(None);
            }
        }
    }

    /// A session could not be had, or ended: says so, unless a person is needed.
    fn ended(&self, error: Error, what: &str, course: &mut Course) -> Result<(), Error> {
        let may_pass = course.established || error.may_be_switchover(&self.setting.config.postgres);
        match error.verdict(may_pass) {
            Verdict::Halt => return Err(error),
            Verdict::Standby => {
                let is_news = course.finds_in_use(&error);
                course.outlived = course.walsender.clone().filter(|own| error.is_held_by(own));
                self.waits_for_slot(&error, is_news, course.outlived.is_some());
            }
            Verdict::Retry => {
                course.standing_by = false;
                let again =
                    if course.attempts.get_nowhere() { " soon, again and again" } else { "" };
                let within = match course.attempts.longest_wait().as_secs() {
                    _ if error.is_intended() => String::new(),
                    seconds => format!("; trying again within {seconds} s"),
                };
                course.ended = error.in_words();
                let still = self.health.standstill().lately().filter(|_| !error.is_intended());
                let (text, cure) = told(&error, (&format!("{what}{again}"), &within), still);
                tracing::debug!(wait = ?course.attempts.wait(), "{text}");
                self.health.set(Phase::Connecting);
                match &error {
                    Error::Source(source::Error::TablesChanged(_))
                        if !course.attempts.get_nowhere() =>
                    {
                        let hint = cure.hint.as_deref();
                        self.health.interruption(Topic::Session, &text, hint);
                    }
                    _ => self.health.trouble_with(Topic::Session, &text, cure),
                }
                self.health.gets_nowhere(course.attempts.get_nowhere());
                self.health.sees_nothing();
            }
        }
        Ok(())
    }

    /// The wish to stop, for a session; once it is asked whether another walsweep goes on.
    fn stop_of_session(&self, primary: &Rc<Sql>) -> (Shutdown, Task<()>) {
        let (trigger, stop) = Shutdown::by_trigger();
        let (mut asked, primary) = (self.shutdown.clone(), Rc::clone(primary));
        let slot = self.setting.config.postgres.slot.clone();
        let relay = spawn(async move {
            asked.requested().await;
            match has_heir(&primary, &slot).await {
                true => trigger.stop_for_heir(),
                false => trigger.stop(),
            }
        });
        (stop.with_handover(self.handover.wish()), relay)
    }

    /// Refuses a Redis that `check` refuses, if it can be reached now.
    async fn check_redis(&mut self) -> Result<(), Error> {
        let findings = tokio::select! {
            biased;
            () = self.shutdown.requested() => Vec::new(),
            checked = redis_checks::check(&self.setting.config, &self.health) => {
                checked.refused_at_start(self.is_strict)
            }
        };
        if findings.is_empty() { Ok(()) } else { Err(Error::Refused(findings)) }
    }

    /// Runs one session to its end.
    async fn session(&mut self, session: Session, course: &mut Course) -> Result<(), Error> {
        let setting = Rc::clone(&self.setting);
        let Session { config, gate, server, witness, slot, .. } = session;
        let Session { expected, wal_end, prints, broken, doubt, timing, .. } = session;
        let (looks, custody) = (session.watch, &course.custody);
        let mut bound = session.rules.with_failed(course.failed.clone());
        let (slot_name, from) = (&setting.config.postgres.slot, expected.lsn);
        tracing::info!(slot = slot_name, %from, timeline = expected.timeline, "streaming");
        let (system_id, timeline) = (expected.system_id.clone(), expected.timeline);
        self.health.session_of(&format!("{system_id}/{timeline}"));
        let history = History { system_id, timeline };
        let standby = |endpoint: &Endpoint| SqlStandby::new(endpoint.clone(), history.clone());
        let standbys = setting.config.postgres.replicas.iter().map(standby).collect();
        let (asked, lookups) = ((&gate, &server.primary), bound.lookups());
        let prepared = self.prepare(&config, history.clone(), lookups, asked).await?;
        let Some((lookups, probe)) = prepared else { return Ok(()) };
        let (lookups, _opening) = lookups.unzip();
        let (adopt, prints) = watch::channel(Rc::new(prints));
        let settings = Settings {
            max_stall: setting.config.sweep.max_stall,
            max_load: setting.config.sweep.max_load,
            window: setting.config.refill.window,
            expected,
            wal_end,
            prints,
            broken,
            doubt,
            empty: setting.rules.key_set(),
            room: Room::of(setting.config.redis.len()),
        };
        let fitness = |target| Rc::new(Fitness::new(target, Arc::clone(&self.health)));
        let fitness: Vec<Rc<Fitness>> = setting.config.targets().map(fitness).collect();
        let nodes = fitness.iter().map(|fitness| self.node(fitness)).collect();
        let primary = Rc::clone(&server.primary);
        let probe = probe.with_fences(primary, Relations::of_rules(&setting.rules));
        let outside = Outside { slot, witness, probe, standbys, nodes, lookups };
        // A task: what wakes for each commit would otherwise poll all of this, too.
        let mut beside = spawn({
            let (server, health) = (server.clone(), Arc::clone(&self.health));
            let keeper = Keeper::new(&config, custody, (&self.health, &self.metrics));
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
        let watched = (&self.health, &self.metrics);
        let (mut stop, _relay) = self.stop_of_session(&server.primary);
        let mut shutdown = self.shutdown.clone();
        let stages = outside.run((settings, timing), &mut bound, watched, &mut stop);
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
        let config = &self.setting.config;
        let count = config.redis.len();
        let share = OfTarget::of(count).names;
        let rules = &self.setting.rules;
        let index = config
            .sweep
            .index
            .map(|bytes| (rules.own_patterns().of_target(redis.id), bytes / count, share));
        if matches!(redis.mode, Mode::Cluster { .. }) {
            let mut cluster = Cluster::new(redis, slot);
            if let Some((patterns, index_bytes, bytes)) = index {
                cluster = cluster.indexing(patterns, index_bytes, bytes);
            }
            return Box::new(cluster.looked_at(look));
        }
        let mut node = Standalone::new(redis, slot);
        if refill.observe && !refill.window.is_zero() {
            node = node.observing(rules.everything().of_target(redis.id), share);
        }
        if let Some((patterns, index_bytes, bytes)) = index {
            node = node.indexing(patterns, index_bytes, bytes);
        }
        Box::new(node.looked_at(look))
    }

    /// The server found no publication at a place of its log. If there is one now that is younger
    /// than what the slot still has to decode, no session gets past that place.
    async fn judge_slot(&self, cause: capture::Error, sql: &Sql) -> Error {
        match step(preflight::before_publication(&self.setting.config, sql)).await {
            Ok(findings) if !findings.is_empty() => {
                let publication = self.setting.config.postgres.publication.clone();
                Error::SlotBeforePublication { publication, cause }
            }
            _ => cause.into(),
        }
    }
}

/// Who reads rows, and who opens their cache.
type Reading = Option<(Lookups, Option<Task<()>>)>;

impl Program {
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
        let (endpoint, health) = (config.postgres.endpoint.clone(), Arc::clone(&self.health));
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
