//! Every external call by every fault, at first boot and in a serving node: what served goes on serving, the state says
//! what is wrong, nobody has to help, and nothing is paid for twice (invariants 7 and 11).
//!
//! The tables are kept in `docs/fault-matrix.md`, and compared with it; `UPDATE_FAULT_MATRIX=1` writes them.

mod aws;
mod gate;
mod metadata;
mod names;
mod server;
mod table;
mod world;

use std::sync::Arc;
use std::time::Duration;

use aws_double::fault::{Fault, Operation};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};

use self::table::Cell;
use self::world::{Setup, World};

/// How long a fault may take to show, and its end to be noticed: the longest time-out is that of a signal, with the
/// roll-back after it.
const SOON: Duration = Duration::from_secs(45);
/// How many nodes work at the same time.
const AT_ONCE: usize = 6;

/// What a fault does to the status.
#[derive(Clone, Debug)]
enum Told {
    /// The node isn't healthy; reasons and log name it by these words.
    Ill(Vec<&'static str>),
    /// The node is healthy, and a warning and the log have these words.
    Warned(Vec<&'static str>),
    /// Nothing: the call succeeds in the end. As no word shows that it was ever made, this does.
    Nothing(Met),
}

/// What shows that a fault nobody tells of was met.
#[derive(Clone, Debug)]
enum Met {
    /// A call of this operation met this fault, and was answered.
    Answered(Operation, Fault),
    /// A call of this operation was refused with this code.
    Refused(Operation, &'static str),
    /// The wrapper around nats-server has left a mark of this name.
    Marked(&'static str),
}

/// What makes a serving node call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    /// It calls by itself.
    Itself,
    /// `agent renew`.
    Renew,
    /// `agent renew` of a process that has just started, and knows nothing of the CA yet.
    RenewAnew,
    /// A restart of the agent.
    Restart,
    /// SIGHUP to the agent.
    HangUp,
    /// A new instance in the group.
    NewPeer,
}

impl Trigger {
    /// Whether it asks for a certificate.
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

/// The same of nodes that aren't all alike.
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

/// Tries the faults of one call on one serving node, one after the other, under traffic.
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

/// Serving nodes, one for each call, at the same time.
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
