//! The rules that walsweep keeps, each a switch, so that the checker can show what each is for.

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// Keys are removed only once the commit is visible to new snapshots (`settle`).
    Gate,
    /// Each commit passes the gate by itself, whatever its predecessors wait for (`settle`).
    GateForEach,
    /// A commit counts as complete when its removal is acknowledged, not when it is sent (`sweep`,
    /// `ledger`).
    AfterAcknowledgement,
    /// Keys are removed again after the refill window (`sweep::refill`).
    SecondRemoval,
    /// A commit counts as complete only after the second removal (`sweep::sweeper`).
    HoldUntilSecond,
    /// A transaction whose first removal is done counts in a hold, which stands for its smallest
    /// member (`sweep::refill`, `ledger`).
    HoldSmallest,
    /// No question that may wait for a lock shares the gate's connection (`session`, `settle`).
    GateAlone,
    /// A session begins although a table is locked (`session`, `shape`).
    StartLocked,
    /// Keys that Redis refuses for one rule wait outside the room of the others (`sweep::sweeper`).
    RefusedApart,
    /// They count as not removed (`sweep::sweeper`).
    RefusedHeld,
    /// They are tried again (`sweep::sweeper`).
    RefusedAgain,
    /// walsweep is not ready while it has some (`telemetry::health`).
    RefusedNotReady,
    /// Patterns that arrive during a pass wait for the next one (`sweep::queue`).
    NextPass,
    /// The watermark covers only what is complete (`stream`, `sweep::proof::ward`).
    WatermarkAfterRemovals,
    /// The watermark replaces only the value that walsweep wrote last (`sweep::proof::ward`).
    CompareAndSet,
    /// Each removal is counted in Redis, and a connection whose number is not right is given up
    /// (`sweep::proof::chain`).
    Chain,
    /// Postgres is told only what the watermark covers (`stream`).
    ConfirmAfterWatermark,
    /// After a lost connection everything above the watermark is removed again (`sweep::sweeper`).
    RepeatOnReconnect,
    /// Where Redis went back to a watermark of this session, the removals above it are repeated
    /// from memory (`sweep::proof::ring`).
    RepeatFromMemory,
    /// An older watermark that this session did not write is evidence of nothing
    /// (`proof::evidence`).
    RememberedOnly,
    /// A watermark that is missing or behind asks for a sweep of everything (`proof::evidence`).
    SweepOnWatermark,
    /// So does one from another timeline (`proof::evidence`).
    SweepOnTimeline,
    /// One that was written while a table read otherwise asks for a sweep of that table's keys
    /// (`sweep::proof::prints`).
    SweepPart,
    /// While such a sweep is owed, a Redis that shows another watermark is judged as ever
    /// (`sweep::proof::ward`).
    JudgeWhilePart,
    /// Everything is swept once more when the commits that were invisible at the start are not any
    /// more (`settle`).
    SweepAfterFence,
    /// Postgres is told the least that all targets have removed and cover (`ledger`).
    LeastOfTargets,
    /// A target that has no room stops no other (`sweep::fan_out`).
    FedApart,
    /// A sweep that one target owes is done at no other (`stream`, `sweep::fan_out`).
    OwnSweep,
    /// After a sweep of everything the watermark is written anew, though it covers no more than
    /// before (`sweep::proof::ward`).
    WatermarkAfterSweep,
}
