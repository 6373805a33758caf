//! Invariants 2 and 11 at every system call: the built agent is killed, or its disk is full or read-only, at each call by
//! which it changes a file or signals nats-server. The calls are enumerated from a recorded run, none is chosen.
//!
//! `NATS_TLS_AGENT_SOAK=1` tries every fault, in both processes that can renew, where the ordinary run tries a part of
//! them at each point.

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

/// How many nodes are put through it at a time: mostly they wait.
const LANES: usize = 3;
const FAULTS: [Effect; 4] = [
    Effect::Once(Errno::Full),
    Effect::From(Errno::ReadOnly),
    Effect::Once(Errno::ReadOnly),
    Effect::From(Errno::Full),
];

/// Dies before each call. The death after the last one is an ordinary restart.
fn deaths(points: &[Point]) -> Vec<(Point, Effect)> {
    points.iter().map(|point| (point.clone(), Effect::Kill)).collect()
}

/// Every point has its faults: all of them in the long form, else two of four in turn.
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

/// Puts nodes through a scenario with one effect at one point at a time, and fails with all that went wrong.
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

/// One node after the other through what is still to be tried; what went wrong.
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
            // The next point begins on another node.
            Err(why) => wrong.push(format!("{effect} at {point}: {why}")),
        }
    }
}

/// What is enumerated is never nothing: what must be among the points, and how many there are at least.
fn is_all_there(scenario: Scenario, names: &[String]) {
    let is_there = |name: &str| names.iter().any(|point| point.starts_with(name));
    assert!(names.len() > 40, "only {} points: {names:?}", names.len());
    // The commit, and the journal before it.
    for name in ["rename CONFIG/nats-server.conf.candidate ", "fsync STATE/issuance.json.new ", "rename NEW.partial/ "]
    {
        assert!(is_there(name), "no {name}in {names:?}");
    }
    // The embedded CA makes itself at a first boot only, and signs each time.
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
