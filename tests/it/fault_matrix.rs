//! Every external call meets every fault, at first boot and in a serving node. The node continues to serve, its status
//! names the fault, and no certificate is paid for twice (invariants 7 and 11).
//!
//! The test compares its tables with `docs/fault-matrix.md`. `UPDATE_FAULT_MATRIX=1` writes the tables there.

mod aws;
mod gate;
mod metadata;
mod names;
mod relay;
mod server;
mod system;
mod table;
mod world;

use std::sync::Arc;
use std::time::Duration;

use aws_double::fault::{Fault, Operation};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};

use self::table::Cell;
use self::world::{Setup, World};

/// The time within which the agent reports a fault and its end. The longest time-out belongs to a reload with its
/// roll-back.
const SOON: Duration = Duration::from_secs(45);
/// The number of nodes that work at the same time.
const AT_ONCE: usize = 6;

/// The effect of a fault on the status.
#[derive(Clone, Debug)]
enum Told {
    /// The node is unhealthy. Reasons and log contain these words.
    Ill(Vec<&'static str>),
    /// The node is healthy. A warning and the log contain these words.
    Warned(Vec<&'static str>),
    /// No effect: the call succeeds in the end. The field holds the proof that the call was made.
    Nothing(Met),
}

/// The proof that a silent fault was met.
#[derive(Clone, Debug)]
enum Met {
    /// A call of this operation met this fault and got an answer.
    Answered(Operation, Fault),
    /// The service refused a call of this operation with this code.
    Refused(Operation, &'static str),
    /// The wrapper around nats-server, or the relay before it, left a mark of this name.
    Marked(&'static str),
    /// The root of this number left the bundle of the newest generation.
    Left(usize),
}

/// The event that makes a serving node call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    /// No event: the node calls by itself.
    Itself,
    /// `agent renew`.
    Renew,
    /// `agent renew` of a process that has just started and knows nothing of the CA yet.
    RenewAnew,
    /// A restart of the agent.
    Restart,
    /// A SIGHUP to the agent.
    HangUp,
    /// A new instance in the group.
    NewPeer,
}

impl Trigger {
    /// Whether the event asks for a certificate.
    fn renews(self) -> bool {
        matches!(self, Self::Renew | Self::RenewAnew)
    }
}

/// Switches a fault on and off.
type Switch = Arc<dyn Fn(&World, bool) + Send + Sync>;

/// A fault of a call.
#[derive(Clone)]
struct Trial {
    call: &'static str,
    fault: &'static str,
    told: Told,
    switch: Switch,
}

/// Boots a node for each trial while the fault holds, and ends the fault.
async fn boot_all(setup: Setup, trials: Vec<Trial>) -> Vec<Cell> {
    boot_each(trials.into_iter().map(|trial| (setup.clone(), trial)).collect()).await
}

/// Boots nodes as `boot_all` does, each node with its own setup.
async fn boot_each(trials: Vec<(Setup, Trial)>) -> Vec<Cell> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let (here, mut running) = (LocalSet::new(), JoinSet::new());
    for (number, (setup, trial)) in trials.into_iter().enumerate() {
        let turns = Arc::clone(&turns);
        running.spawn_local_on(
            async move {
                let _turn = turns.acquire().await.unwrap();
                let (call, fault) = (trial.call, trial.fault);
                let outcome = match World::new(&setup).await {
                    Ok(mut world) => {
                        let outcome = world.boot(&trial).await;
                        let ended = world.end().await;
                        outcome.and_then(|word| ended.map(|()| word))
                    }
                    Err(failure) => Err(failure),
                };
                (number, Cell { call, fault, outcome })
            },
            &here,
        );
    }
    let mut cells = here.run_until(running.join_all()).await;
    cells.sort_by_key(|(number, _)| *number);
    cells.into_iter().map(|(_, cell)| cell).collect()
}

/// Tries the faults of a call on a serving node, one after the other, under traffic.
async fn serve_through(setup: Setup, trigger: Trigger, trials: Vec<Trial>) -> Vec<Cell> {
    let all_failed = |why: &str| {
        let failed = |trial: &Trial| Cell { call: trial.call, fault: trial.fault, outcome: Err(why.to_owned()) };
        trials.iter().map(failed).collect::<Vec<_>>()
    };
    let mut world = match World::new(&setup).await {
        Ok(world) => world,
        Err(why) => return all_failed(&why),
    };
    let traffic = match world.serve().await {
        Ok(traffic) => traffic,
        Err(why) => {
            drop(world.end().await);
            return all_failed(&why);
        }
    };
    let mut cells = Vec::new();
    for trial in &trials {
        let outcome = world.serving(trial, trigger).await;
        cells.push(Cell { call: trial.call, fault: trial.fault, outcome });
    }
    let tally = traffic.stop().await;
    if let Err(why) = world.end().await {
        return all_failed(&why);
    }
    match tally {
        Ok(tally) if (tally.lost(), tally.disconnects, tally.reconnects) == (0, 0, 0) => cells,
        Ok(tally) => all_failed(&format!("a client was disturbed: {tally:?}")),
        Err(failure) => all_failed(&failure.chain()),
    }
}

/// Runs serving nodes at the same time, one for each call.
async fn serve_all(calls: Vec<(Setup, Trigger, Vec<Trial>)>) -> Vec<Cell> {
    let (here, mut running) = (LocalSet::new(), JoinSet::new());
    for (number, (setup, trigger, trials)) in calls.into_iter().enumerate() {
        let served = Box::pin(serve_through(setup, trigger, trials));
        running.spawn_local_on(async move { (number, served.await) }, &here);
    }
    let mut tried = here.run_until(running.join_all()).await;
    tried.sort_by_key(|(number, _)| *number);
    tried.into_iter().flat_map(|(_, cells)| cells).collect()
}
