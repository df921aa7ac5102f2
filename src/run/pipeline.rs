//! The one file that knows the order of the stages.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::JoinError;

use crate::capture::Slot;
use crate::channel::{Receiver, Sender, channel};
use crate::keys::Bound;
use crate::run::error::Error;
use crate::run::session::Timing;
use crate::run::shutdown::Shutdown;
use crate::run::stream::{CHANNEL_LENGTH, Ends, GateEnds, Stream};
pub use crate::run::targets::TargetNode;
use crate::run::targets::{first_ended, sweep};
use crate::run::task::{Task, spawn};
use crate::run::vouched::{Vouching, vouch};
use crate::settle::{self, Gate, Lookups, Probe, Replicas, Standby, Visible};
use crate::source;
use crate::source::slot_server::Witness;
use crate::sweep::Settings;
use crate::telemetry::Health;
use crate::telemetry::metrics::Metrics;

/// Everything that a session touches outside of the program. The simulation has its own.
pub struct Outside<P, S> {
    /// The slot that is streamed.
    pub slot: Slot,
    /// Who says that what a standby sends is the primary's history.
    pub witness: Option<Witness<S>>,
    /// Who knows what is visible.
    pub probe: P,
    /// The standbys that readers use, too.
    pub standbys: Vec<S>,
    /// The Redis of each target, in the order of the configuration.
    pub nodes: Vec<Box<dyn TargetNode>>,
    /// Who reads rows, if rules name lookups.
    pub lookups: Option<Lookups>,
}

impl<P: Probe + 'static, S: Standby + 'static> Outside<P, S> {
    /// Joins the stages and runs them to the session's end. The stream begins at the LSN that the
    /// settings expect. Needs a [`LocalSet`](tokio::task::LocalSet) around it.
    ///
    /// # Errors
    ///
    /// Whatever ends the session, other than the wish to stop.
    pub async fn run(
        self,
        (settings, timing): (Settings, Timing),
        bound: &mut Bound,
        (health, metrics): (&Arc<Health>, &Arc<Metrics>),
        shutdown: &mut Shutdown,
    ) -> Result<(), Error> {
        let (start, wal_end) = (settings.expected.lsn, settings.wal_end);
        let (ends, gate_ends, mut target_ends) = Ends::new(start, self.nodes.len());
        let cache = self.lookups.as_ref().and_then(Lookups::cache);
        let mut witness = self.witness.map(|witness| {
            let Vouching { asked, vouched, tasks } = vouch(start, &mut target_ends.safe);
            let safe = Rc::new(vouched);
            // Held here, too: the sweepers would end with it before it is said why.
            (spawn(witness.run(asked, Rc::clone(&safe))), (safe, tasks))
        });
        let gate = Gate::new(self.probe, Arc::clone(health));
        let replicas = Replicas::new(bound.rules().everything(), Arc::clone(health));
        let replicas = replicas.starting_at(start);
        let mut gate = spawn(settle(gate, self.lookups, (replicas, self.standbys), gate_ends));
        let mut sweeping = sweep(self.nodes, &settings, health, target_ends);
        let stream = Stream::new(self.slot, bound, ends, (start, timing)).with_cache(cache);
        let stream = stream.behind(wal_end, health.unconfirmed_since());
        let outcome = tokio::select! {
            biased;
            outcome = stream.run((health, metrics), shutdown) => outcome,
            ended = &mut gate.0 => return Err(why_settled(ended)),
            () = first_ended(&mut sweeping) => Err(Error::Stage("sweep")),
            error = denied(witness.as_mut().map(|(task, _held)| task)) => Err(error),
        };
        match outcome {
            // The stream met the closed channel before the end of the stage was seen here. Without
            // its reason, a lost connection would look like a stage that the slot's content ends.
            Err(Error::Stage("settle")) => Err(why_settled((&mut gate.0).await)),
            outcome => outcome,
        }
    }
}

/// Why the gate's stage ended, from what its task gave.
fn why_settled(ended: Result<Result<(), settle::Error>, JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => Error::Stage("settle"),
    }
}

/// Why the witness speaks no more; never without one.
async fn denied(witness: Option<&mut Task<source::Error>>) -> Error {
    match witness {
        Some(task) => (&mut task.0).await.map_or(Error::Stage("witness"), Error::Source),
        None => std::future::pending().await,
    }
}

/// Runs the gate; where keys need rows, with the lookups behind it; where readers use standbys,
/// with the wait for those behind both.
async fn settle<P: Probe + 'static, S: Standby + 'static>(
    gate: Gate<P>,
    lookups: Option<Lookups>,
    (replicas, standbys): (Replicas, Vec<S>),
    ends: GateEnds,
) -> Result<(), settle::Error> {
    let GateEnds { inputs, visible, answers } = ends;
    let gate = gate.with_answers(answers);
    if standbys.is_empty() {
        return look_up(gate, lookups, inputs, visible).await;
    }
    let (passed, received) = channel(CHANNEL_LENGTH);
    tokio::select! {
        outcome = look_up(gate.with_replicas(), lookups, inputs, passed) => outcome,
        () = replicas.run(standbys, received, visible) => Ok(()),
    }
}

/// Runs the gate, with the lookups behind it.
async fn look_up<P: Probe + 'static>(
    gate: Gate<P>,
    lookups: Option<Lookups>,
    inputs: Receiver<settle::Input>,
    outputs: Sender<Visible>,
) -> Result<(), settle::Error> {
    let Some(lookups) = lookups else { return gate.run(inputs, outputs).await };
    let (passed, received) = channel(CHANNEL_LENGTH);
    let mut looking = pin!(lookups.run(received, outputs));
    tokio::select! {
        outcome = gate.run(inputs, passed) => outcome?,
        () = &mut looking => return Ok(()),
    }
    looking.await;
    Ok(())
}
