//! A fleet of the real agent on virtual time.
//!
//! Each node runs the agent's own reconciler, schedule, issuance, journal, acceptance and commit on its own state
//! directory. `aws-double` with its quotas stands for AWS, and `doubles::fake_server` stands for nats-server. One
//! thread runs all nodes, and the clock jumps from timer to timer. The same seed gives the same run.
//!
//! # Three scenarios
//!
//! **A year.** Clusters of five nodes have weekly certificates. AWS is away, throttles, denies or loses answers for up
//! to [`AUTONOMY`]. Agents are killed at random awaits and restarted. nats-servers restart, instances are replaced, and
//! the CA rolls over. In half of the rollovers the new root signs at once, and in half the old root goes too soon.
//!
//! The interval of discovery is hours here. A thousand nodes would make 10⁹ passes in a year at the product's
//! `discovery.interval` of 30 s. Nearly all passes would have nothing to do. Agents poll the bundle in every round,
//! which is every few hours here. The long interval also spreads the nodes' work, so the other scenario judges
//! quotas and reloads. The longest pause between two failures of the bundle or of discovery grows with the interval.
//! Agents repeat a failed issuance every few minutes.
//!
//! **Rush hour.** Clusters of three, five and a hundred nodes meet the events that make all nodes act at once. The
//! interval of discovery is the real 30 s. Only the calm days before the outage have a long interval. The events:
//!
//! - a boot of all nodes,
//! - the end of an outage in which every certificate falls due,
//! - the addition and the removal of a root,
//! - an `agent renew` of all nodes,
//! - a scale-out by a fifth, and a scale-in.
//!
//! **Turnover.** Ten instances of a cluster of five are replaced in a day, at the real interval. The
//! reloads are counted, because an auth callout loses every client at a reload.
//!
//! # What is promised
//!
//! - No server shows an expired certificate, as long as no outage is longer than [`AUTONOMY`].
//! - Every node serves a certificate by the end.
//! - Calls of Private CA exceed a quota for [`JITTER_WINDOW`] at most. Jitter spreads a thousand throttled nodes in
//!   that time. Nodes meet the narrowest quota first, because each process reads the CA's certificate once.
//! - At most a third of a cluster, rounded up, reloads by itself in the same ten seconds. A cluster of three reloads
//!   one node at a time. All nodes reload at once if an operator tells all nodes to renew. The report shows their
//!   share, and no promise limits their share.
//! - No key is paid for twice, with one exception. The answer is lost together with the waiting process, and Private CA
//!   refuses at least [`REPEATS`] repeats before it forgets the token.
//! - A configuration names a complete set of files at every start and reload (invariant 2).
//! - All servers of a cluster trust each other at any time (invariant 5). Two pairs are counted apart: a node that was launched after
//!   its peer's CA left the bundle, and a new node whose first CA the peer could not read yet.
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

/// The longest time for which calls may exceed a quota after all nodes begin at once. A thousand nodes that boot in one
/// second need the narrowest quota for 50 seconds. They exceeded the quota for 65 seconds. Three hundred nodes exceeded
/// the quota for 14 seconds.
pub const JITTER_WINDOW: Duration = Duration::from_secs(90);
/// The largest number of files in a state directory: four generations of four files, and eight other files.
pub const MOST_FILES: usize = 24;
/// The time at which every run begins.
const START: OffsetDateTime = datetime!(2027-01-01 00:00 UTC);
/// The number of servers in a cluster of the year.
const CLUSTER: usize = 5;

/// Receives the progress of a run, one line at a time.
pub type Tell = fn(&str);

/// Runs `nodes` nodes for `days` days.
///
/// # Errors
/// The state directories can't be made.
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
/// The state directories can't be made.
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

/// Runs a cluster of five through a day in which ten of its instances are replaced. `tells_routes`: nats-servers report their
/// routes, so a change of peers alone needs no reload.
///
/// # Errors
/// The state directories can't be made.
pub fn turnover(tells_routes: bool, seed: u64, tell: Tell) -> std::io::Result<Report> {
    let never = Duration::from_hours(24 * 365);
    let disturbances = Disturbances { killed: 0.0, agent_restart: never, server_restart: never };
    run("turnover", 1, RUSH_INTERVAL, seed, tell, async |world: &Arc<World>| {
        if tells_routes {
            world.tell_routes();
        }
        world.begin_phase("turnover");
        let mut fleet = Fleet::new(Arc::clone(world), seed, disturbances);
        fleet.boot(&[CLUSTER], Duration::from_secs(1));
        fleet.turn_over(10, Duration::from_hours(24)).await;
        fleet
    })
}

/// Divides the nodes: a cluster of three, a third of the nodes in clusters of five, the rest in clusters of a hundred.
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
#[expect(clippy::disallowed_methods, reason = "the report shows the real time of the run")]
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
            // A node that an outage delays serves after the outage and one pause between two failures.
            world.cloud.plan(Vec::new());
            let given_up = world.clock.now() + world.interval() + Duration::from_mins(30);
            while world.unserved() > 0 && world.clock.now() < given_up {
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
            if world.unserved() > 0 {
                world.broken(&format!("{} nodes never served a certificate", world.unserved()));
            }
        }
        world.check_all();
        fleet.stop();
        world
    });
    drop(runtime);
    Ok(Report::of(scenario, seed, &world, began.elapsed()))
}
