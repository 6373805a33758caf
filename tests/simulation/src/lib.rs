//! A fleet of the real agent on virtual time.
//!
//! The agent's own reconciler, schedule, issuance, journal, acceptance and commit run, on a state directory for each node.
//! AWS is `aws-double` with its quotas, and nats-server is `doubles::fake_server`. There is one thread, one clock that jumps
//! from timer to timer, and a seed: the same seed gives the same run.
//!
//! # Two scenarios
//!
//! **A year.** Clusters of five with weekly certificates. AWS is away, throttles, denies or loses answers for up to
//! [`AUTONOMY`]. Agents are killed at random awaits and restarted, nats-servers restart, instances are replaced, and the CA
//! rolls over. In half of the rollovers the operator takes the old root away too soon.
//!
//! A year of a thousand nodes at the product's `discovery.interval` of 30 s would be 10⁹ passes, nearly all with nothing to
//! do. So the interval here is hours. The bundle, which is polled every tenth round, is polled every few days.
//! The interval spreads the nodes' work in the same measure, so the other scenario judges quotas and reloads. The longest pause
//! between two failures of the bundle or of discovery grows with the interval. Issuance is repeated every few minutes.
//!
//! **Rush hour.** Clusters of five and of a hundred at the real 30 s, at the events that make all nodes act at once. Only the
//! calm days before the outage have a long interval. The events:
//!
//! - a boot of all nodes,
//! - the end of an outage in which every certificate fell due,
//! - a root added and taken away,
//! - an `agent renew` of all nodes,
//! - a scale-out by a fifth, and a scale-in.
//!
//! # What is promised
//!
//! - No certificate expires while it is served, as long as no outage is longer than [`AUTONOMY`].
//! - Every node comes to serve.
//! - Calls of Private CA exceed a quota for [`JITTER_WINDOW`] at most: by then a thousand throttled nodes have drawn apart. The
//!   first quota that nodes meet is the narrowest: each process reads the CA's certificate once.
//! - At most a third of a cluster, rounded up, reloads by itself in the same ten seconds: one node of three. When an operator
//!   tells all nodes to renew, all reload at once. That share is shown, and no promise is made of it.
//! - No key is paid for twice, with one exception: the answer was lost with the process that waited for it, and Private CA
//!   refused at least [`REPEATS`] repeats until it had forgotten the token.
//! - A configuration names a complete set of files at every start and reload (invariant 2).
//! - No two servers of a cluster ever stop trusting each other (invariant 5).
//! - No state directory holds more than [`MOST_FILES`] files.

mod cloud;
mod meters;
mod node;
mod report;
mod scenario;
mod world;

use std::sync::Arc;
use std::time::Duration;

use nats_tls_agent::clock::Clock;
use time::OffsetDateTime;
use time::macros::datetime;

use node::Disturbances;
use scenario::{Fleet, RUSH_INTERVAL};
use world::World;

pub use cloud::REPEATS;
pub use meters::Share;
pub use node::VALIDITY;
pub use report::{Figures, Report};
pub use scenario::{AUTONOMY, ORDERED, Rush, Year};

/// How long calls may exceed a quota after all nodes began at once. A thousand nodes that boot in one second need the
/// narrowest quota for 50 seconds, and exceeded it for 65. Three hundred nodes exceeded it for 14.
pub const JITTER_WINDOW: Duration = Duration::from_secs(90);
/// The most files in a state directory: four generations of four files, and eight other files.
pub const MOST_FILES: usize = 24;
/// The time at which every run begins.
const START: OffsetDateTime = datetime!(2027-01-01 00:00 UTC);
/// Servers of a cluster in the year.
const CLUSTER: usize = 5;

/// Receives the progress of a run, one line at a time.
pub type Tell = fn(&str);

/// Runs so many nodes for so many days.
///
/// # Errors
/// When there is no place for state directories.
pub fn year(nodes: usize, days: u32, interval: Duration, seed: u64, tell: Tell) -> std::io::Result<Report> {
    let plan = Year { length: Duration::from_hours(24) * days, node_life: Duration::from_hours(24 * 120) };
    let clusters: Vec<usize> = (0..nodes.div_ceil(CLUSTER)).map(|at| CLUSTER.min(nodes - at * CLUSTER)).collect();
    let disturbances = Disturbances {
        killed: 0.02,
        agent_restart: Duration::from_hours(24 * 14),
        server_restart: Duration::from_hours(24 * 30),
    };
    run("year", clusters.len(), interval, seed, tell, async |world: &Arc<World>| {
        world.cloud.plan(plan.outages(START, seed));
        let mut fleet = Fleet::new(Arc::clone(world), seed, disturbances);
        world.begin_phase("year");
        fleet.boot(&clusters, plan.boot());
        fleet.live(&plan).await;
        fleet
    })
}

/// Runs clusters of these sizes through the hours in which all nodes act at once.
///
/// # Errors
/// When there is no place for state directories.
pub fn rush_hour(clusters: Vec<usize>, seed: u64, tell: Tell) -> std::io::Result<Report> {
    let plan = Rush { clusters };
    let never = Duration::from_hours(24 * 365);
    let disturbances = Disturbances { killed: 0.001, agent_restart: never, server_restart: never };
    run("rush hour", plan.clusters.len(), RUSH_INTERVAL, seed, tell, async |world: &Arc<World>| {
        let mut fleet = Fleet::new(Arc::clone(world), seed, disturbances);
        fleet.boot(&plan.clusters, Duration::from_secs(1));
        fleet.rush(&plan).await;
        fleet
    })
}

/// One cluster of three, a third of the nodes in clusters of five, the rest in clusters of a hundred.
#[must_use]
pub fn rush_clusters(nodes: usize) -> Vec<usize> {
    let smallest = nodes.min(3);
    let small = (nodes / 3 / CLUSTER).min((nodes - smallest) / CLUSTER);
    let rest = nodes - smallest - small * CLUSTER;
    let mut clusters = vec![smallest];
    clusters.extend(vec![CLUSTER; small]);
    clusters.extend((0..rest.div_ceil(100)).map(|at| 100.min(rest - at * 100)));
    clusters
}

/// Makes a world, lives through the scenario, and reports the figures.
#[expect(clippy::disallowed_methods, reason = "how long a run takes is a figure of it")]
fn run(
    scenario: &'static str,
    clusters: usize,
    interval: Duration,
    seed: u64,
    tell: Tell,
    live: impl AsyncFnOnce(&Arc<World>) -> Fleet,
) -> std::io::Result<Report> {
    let began = std::time::Instant::now();
    let shared_memory = std::path::Path::new("/dev/shm");
    let place = if shared_memory.is_dir() { shared_memory.to_owned() } else { std::env::temp_dir() };
    let directory = tempfile::Builder::new().prefix("fleet-").tempdir_in(place)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let world = runtime.block_on(async {
        fastrand::seed(seed);
        let world = World::new(Clock::starting_at(START), clusters, directory.path().to_owned(), interval, tell);
        let fleet = live(&world).await;
        if world.unserved() > 0 {
            world.begin_phase("end");
            // Nodes that an outage held up come to serve after its end and the pause between two failures.
            world.cloud.plan(Vec::new());
            let given_up = world.clock.now() + world.interval() + Duration::from_mins(30);
            while world.unserved() > 0 && world.clock.now() < given_up {
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
            if world.unserved() > 0 {
                world.broken(&format!("{} nodes never came to serve", world.unserved()));
            }
        }
        world.check_all();
        fleet.stop();
        world
    });
    drop(runtime);
    Ok(Report::of(scenario, seed, &world, began.elapsed()))
}
