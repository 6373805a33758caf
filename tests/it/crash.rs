//! Invariants 2 and 11 at every system call that changes a file or signals nats-server. At each call the built agent is
//! killed, or its disk is full or read-only. A recorded run enumerates the calls.
//!
//! The ordinary run tries a part of the faults at each point. `NATS_TLS_AGENT_SOAK=1` tries every fault, in both
//! processes that can renew.

mod bench;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use harness::nodes::Nodes;
use harness::soak;
use harness::strace::{self, Effect, Errno, Point, by_call};
use harness::tools;
use tokio::task::{JoinSet, LocalSet};

use self::bench::{Bench, Process, Scenario};
use crate::AGENT;

/// The number of nodes that go through a scenario at the same time. The nodes mostly wait.
const LANES: usize = 3;
const FAULTS: [Effect; 4] = [
    Effect::Once(Errno::Full),
    Effect::From(Errno::ReadOnly),
    Effect::Once(Errno::ReadOnly),
    Effect::From(Errno::Full),
];

/// The agent dies before each call. A death after the last call is an ordinary restart.
fn deaths(points: &[Point]) -> Vec<(Point, Effect)> {
    points.iter().map(|point| (point.clone(), Effect::Kill)).collect()
}

/// The faults of each point. The long form tries all four faults, and the short form tries two of them in turn.
fn faults(points: &[Point]) -> Vec<(Point, Effect)> {
    let mut all = Vec::new();
    for (index, point) in points.iter().enumerate().filter(|(_, point)| !point.path.as_os_str().is_empty()) {
        let chosen = if soak::is_long() { &FAULTS[..] } else { &FAULTS[index % 2 * 2..][..2] };
        all.extend(chosen.iter().map(|effect| (point.clone(), *effect)));
    }
    let can_be = |(point, effect): &(Point, Effect)| !matches!(effect, Effect::From(errno) if !point.can_stay(*errno));
    all.retain(can_be);
    all
}

/// Puts nodes through a scenario, with a single effect at a single point each time. Fails with every error.
async fn sweep(scenario: Scenario, process: Process, effects: fn(&[Point]) -> Vec<(Point, Effect)>) {
    strace::present().unwrap_or_else(|failure| panic!("{}", failure.chain()));
    let mut benches = Vec::new();
    let mut recorded = Vec::new();
    for _ in 0..2 {
        let mut bench = Bench::new(scenario, process).await.unwrap();
        recorded.push(bench.points().await.unwrap());
        benches.push(bench);
    }
    assert_eq!(names(&recorded[0]), names(&recorded[1]), "the points of two runs differ, so they can't be counted");
    let points = recorded.swap_remove(0);
    is_all_there(scenario, &names(&points));
    let all = effects(&points);
    for point in points.iter().filter(|point| !point.path.as_os_str().is_empty()) {
        assert!(all.iter().any(|(of, _)| of == point), "nothing is tried at {point}");
    }
    let tried = all.len();
    let mut by_effect = BTreeMap::<String, usize>::new();
    for (_, effect) in &all {
        *by_effect.entry(effect.to_string()).or_default() += 1;
    }
    let of = format!("crash: {scenario:?}, {process:?}");
    soak::figure(&format!("{of}: points"), format!("{} ({})", points.len(), by_call(&points)));
    soak::figure(&format!("{of}: tried"), format!("{by_effect:?}"));

    let queue = Rc::new(RefCell::new(VecDeque::from(all)));
    let lanes = async {
        let mut lanes = JoinSet::new();
        for _ in 0..LANES {
            lanes.spawn_local(lane(scenario, process, benches.pop(), Rc::clone(&queue)));
        }
        lanes.join_all().await.concat()
    };
    let wrong: Vec<String> = LocalSet::new().run_until(lanes).await;
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Puts nodes through the remaining trials, each node in turn. Returns the errors.
async fn lane(
    scenario: Scenario,
    process: Process,
    mut bench: Option<Bench>,
    queue: Rc<RefCell<VecDeque<(Point, Effect)>>>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    loop {
        let Some((point, effect)) = queue.borrow_mut().pop_front() else { return wrong };
        let mut on = match bench.take() {
            Some(bench) => bench,
            None => Bench::new(scenario, process).await.unwrap(),
        };
        match on.round(&point, effect).await {
            Ok(()) => bench = Some(on),
            // The next point starts with another node.
            Err(why) => wrong.push(format!("{effect} at {point}: {why}")),
        }
    }
}

/// Checks the enumeration: the calls that must be among the points, and the least number of points.
fn is_all_there(scenario: Scenario, names: &[String]) {
    let is_there = |name: &str| names.iter().any(|point| point.starts_with(name));
    assert!(names.len() > 40, "only {} points: {names:?}", names.len());
    // The journal comes before the commit.
    for name in ["rename CONFIG/nats-server.conf.candidate ", "fsync STATE/issuance.json.new ", "rename NEW.partial/ "]
    {
        assert!(is_there(name), "no {name}in {names:?}");
    }
    // The agent creates the embedded CA only at a first boot. The CA signs in both scenarios.
    let made = ["rename CA/ca.key.new ", "fsync CA/ca.pem.new ", "rename CA/ca.pem.new "].into_iter();
    let signed = ["write CA/issued/.new ", "fsync CA/issued/.new ", "rename CA/issued/.new ", "fsync CA/issued "];
    for name in made.filter(|_| scenario == Scenario::FirstBoot).chain(signed) {
        assert!(is_there(name), "no {name}in {names:?}");
    }
    assert_eq!(is_there("pidfd_send_signal "), scenario == Scenario::Renewal, "the signal in {names:?}");
}

fn names(points: &[Point]) -> Vec<String> {
    let mut names: Vec<String> = points.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn invariant_02_and_11_a_death_at_any_system_call_of_a_first_boot_leaves_a_whole_and_pays_once() {
    sweep(Scenario::FirstBoot, Process::Daemon, deaths).await;
    if soak::is_long() {
        sweep(Scenario::FirstBoot, Process::Alone, deaths).await;
    }
}

#[tokio::test]
async fn invariant_02_and_11_a_death_at_any_system_call_of_a_renewal_leaves_a_whole_and_pays_once() {
    sweep(Scenario::Renewal, Process::Alone, deaths).await;
    if soak::is_long() {
        sweep(Scenario::Renewal, Process::Daemon, deaths).await;
    }
}

#[tokio::test]
async fn invariant_02_and_11_a_disk_that_fails_at_any_system_call_of_a_first_boot_is_told_and_heals() {
    sweep(Scenario::FirstBoot, Process::Daemon, faults).await;
    if soak::is_long() {
        sweep(Scenario::FirstBoot, Process::Alone, faults).await;
    }
}

#[tokio::test]
async fn invariant_02_and_11_a_disk_that_fails_at_any_system_call_of_a_renewal_is_told_and_heals() {
    sweep(Scenario::Renewal, Process::Daemon, faults).await;
    if soak::is_long() {
        sweep(Scenario::Renewal, Process::Alone, faults).await;
    }
}

#[tokio::test]
async fn a_log_that_can_not_be_written_ends_nothing() {
    strace::present().unwrap_or_else(|failure| panic!("{}", failure.chain()));
    let mut cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let node = &mut cluster.nodes[0];
    node.agent.kill().await.unwrap();
    let (log, trace) = (node.agent.config().with_extension("log"), node.state_directory().with_file_name("trace"));
    node.agent.set_launcher(strace::injecting(&trace, &Point::first("write", &log), Effect::From(Errno::Full)));
    node.agent.start().unwrap();
    node.agent.set_launcher(Vec::new());
    node.healthy(Duration::from_secs(20)).await.unwrap();
    let renewed = node.agent.renew().await.unwrap();
    assert_eq!(renewed["result"], "confirmed");
    assert!(strace::was_injected(&trace), "nothing was logged");
    node.agent.check_running().unwrap();
}
