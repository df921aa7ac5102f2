//! The state of each target, as far as it is known, and what that makes of the whole.

use super::Stream;
use super::swept::Sweep;
use crate::config::TargetId;
use crate::failpoint::{Point, reach};
use crate::settle::{Input, Resync};
use crate::sweep::Doubt;
use crate::telemetry::metrics::{Metrics, ReasonLabel};
use crate::telemetry::{Health, Phase};

/// How far a target is.
pub(super) struct Progress {
    /// As it would be if it were the only one.
    phase: Phase,
    /// Whether it owes a sweep, so that nothing can be confirmed.
    owes_sweep: bool,
    /// The sweep: what it is about, and what it took so far.
    swept: Option<Sweep>,
}

impl Default for Progress {
    /// It has not been heard of.
    fn default() -> Progress {
        Progress { phase: Phase::Connecting, owes_sweep: false, swept: None }
    }
}

impl Stream<'_> {
    /// Whether a target owes a sweep, so that nothing can be confirmed.
    pub(super) fn owes_sweep(&self) -> bool {
        self.targets.iter().any(|target| target.owes_sweep)
    }

    /// The connection to a target's Redis is lost: what stands there is not known any more.
    pub(super) fn lost(&mut self, target: TargetId, health: &Health) {
        self.ledger.uncover(target);
        self.is_in(target, Phase::RedisLost, health);
    }

    /// Nothing stale is left in a target for a reader to see.
    pub(super) fn whole(&mut self, target: TargetId, (health, metrics): (&Health, &Metrics)) {
        if let Some(progress) = self.targets.get_mut(target.place()) {
            progress.owes_sweep = false;
            if let Some(swept) = &mut progress.swept {
                swept.tell(metrics);
                health.trail().swept(target, false);
            }
        }
        self.is_in(target, Phase::Streaming, health);
    }

    /// The watermark of a target moved. It waits for the second removal of a sweep, which is told
    /// now.
    pub(super) fn told_again(&mut self, target: TargetId, (health, metrics): (&Health, &Metrics)) {
        let Some(progress) = self.targets.get_mut(target.place()) else { return };
        if let Some(mut swept) = progress.swept.take_if(|swept| swept.is_told()) {
            swept.tell_again(metrics);
            health.trail().swept(target, true);
        }
    }

    /// A target, and no other, owes a sweep of what is in doubt there.
    pub(super) fn resync(
        &mut self,
        target: TargetId,
        doubt: Doubt,
        (health, metrics): (&Health, &Metrics),
    ) {
        self.ledger.uncover(target);
        let broken = doubt.reason();
        let keys = self.bound.rules().part(|place| doubt.is_of(place)).of_target(target);
        let reason = broken.as_str();
        let redis = metrics.target_name(target);
        for what in doubt.told(self.bound.rules().names()) {
            match doubt {
                Doubt::Everything(_) => {
                    tracing::warn!(redis, reason, removes = keys.shown(), "sweeping {what}");
                }
                Doubt::Keys(_) => tracing::info!(redis, reason, "sweeping {what}"),
            }
        }
        let only = matches!(doubt, Doubt::Keys(_)).then_some(&keys);
        health.trail().sweeps(target, (reason, &doubt.reasons()), only);
        metrics.resyncs.get_or_create(&ReasonLabel { reason }).inc();
        self.is_in(target, Phase::Sweeping(reason), health);
        if let Some(progress) = self.targets.get_mut(target.place()) {
            progress.owes_sweep = true;
            reach(Point::ResyncOwed);
            let before = progress.swept.take();
            progress.swept = Some(Sweep::new((target, doubt), metrics, before));
        }
        let target = Some(target).filter(|_| self.targets.len() > 1);
        let resync = Resync { keys, target, fenced: broken.is_fenced() };
        self.pass_on(Input::Resync(Box::new(resync)));
    }

    /// Notes what a target does now. The whole does what the one does that is furthest behind.
    fn is_in(&mut self, target: TargetId, phase: Phase, health: &Health) {
        if let Some(progress) = self.targets.get_mut(target.place()) {
            progress.phase = phase;
        }
        health.metrics().target_is_ready(target, phase == Phase::Streaming);
        health.noted().target(target).is_in(phase);
        let phases = TargetId::first(self.targets.len()).zip(&self.targets);
        let phases = phases.map(|(id, progress)| (id, progress.phase));
        let furthest = phases.min_by_key(|(_, phase)| nearness(*phase));
        let (target, phase) = furthest.unwrap_or((target, phase));
        let was = health.phase();
        health.set_of(phase, target);
        if phase != Phase::Streaming || was == health.phase() {
            return;
        }
        match &*health.in_the_way() {
            [] => tracing::info!("ready"),
            why => tracing::info!("streaming, but not ready: {}", why.join("; ")),
        }
    }
}

/// How near to ready a target in this phase is.
fn nearness(phase: Phase) -> u8 {
    match phase {
        Phase::RedisLost => 0,
        Phase::Connecting | Phase::Standby | Phase::Stopping => 1,
        Phase::Sweeping(_) => 2,
        Phase::Streaming => 3,
    }
}
