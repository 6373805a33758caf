//! nats-server itself: `-t`, the signal, monitoring and the handshake.

use std::sync::Arc;

use nix::sys::signal::Signal;

use super::gate::{Gate, Gates, Passage};
use super::world::{Ports, Setup, World};
use super::{Met, Told, Trial, Trigger, boot_all, serve_all, table};

fn trial(
    call: &'static str,
    fault: &'static str,
    told: Told,
    switch: impl Fn(&World, bool) + Send + Sync + 'static,
) -> Trial {
    Trial { call, fault, told, switch: Arc::new(switch) }
}

fn check() -> Vec<Trial> {
    const CALL: &str = "nats-server -t";
    let mode = |fault: &'static str, told| {
        trial(CALL, fault, told, move |world, on| {
            world.gates.as_ref().unwrap().set_check(if on { fault } else { "" });
        })
    };
    let gone = |world: &World, on: bool| {
        let (there, away) = (world.directory().join("bin/nats-server"), world.directory().join("bin/away"));
        if on { std::fs::rename(there, away).unwrap() } else { std::fs::rename(away, there).unwrap() }
    };
    vec![
        mode("refuses", Told::Ill(vec!["nats-server -t refuses"])),
        mode("crashes", Told::Ill(vec!["nats-server -t refuses"])),
        mode("hangs", Told::Ill(vec!["-t", "did not end within"])),
        mode("silent", Told::Nothing(Met::Marked("silent"))),
        trial(CALL, "gone", Told::Ill(vec!["could not run", "nats-server"]), gone),
    ]
}

fn signal() -> Vec<Trial> {
    const CALL: &str = "signal";
    let pid_file = |fault, words, text: fn() -> Option<String>| {
        trial(CALL, fault, Told::Ill(words), move |world, on| {
            let file = world.directory().join("n1/nats-server.pid");
            match (on, text()) {
                (true, Some(text)) => std::fs::write(file, text).unwrap(),
                (true, None) => std::fs::remove_file(file).unwrap(),
                (false, _) => {
                    std::fs::write(file, world.node.server.as_ref().unwrap().pid().unwrap().to_string()).unwrap();
                }
            }
        })
    };
    let frozen = |world: &World, on: bool| {
        world.node.server.as_ref().unwrap().signal(if on { Signal::SIGSTOP } else { Signal::SIGCONT }).unwrap();
    };
    vec![
        pid_file("no pid file", vec!["there is no", ".pid", "serves TLS"], || None),
        pid_file("nonsense in it", vec!["holds no pid"], || Some("nonsense".into())),
        pid_file("another's pid", vec!["names pid"], || Some(std::process::id().to_string())),
        trial(CALL, "frozen server", Told::Ill(vec!["client port"]), frozen),
    ]
}

fn monitoring() -> Vec<Trial> {
    const CALL: &str = "monitoring";
    let gate = |fault, passage| {
        let told = Told::Warned(vec!["doesn't answer on its monitoring port"]);
        trial(CALL, fault, told, gated(|gates| &gates.monitor, passage))
    };
    vec![
        gate("hangs", Passage::Silent),
        gate("reset", Passage::Resets),
        gate("500", Passage::Says("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")),
        gate("HTML", Passage::Says("HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n<html>x</html>")),
        gate("cut off", Passage::Says("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{\"version\": \"2")),
        gate("endless", Passage::Says("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{")),
    ]
}

fn handshake() -> Vec<Trial> {
    const CALL: &str = "handshake with the client port";
    let gate = |fault, word, passage| {
        trial(CALL, fault, Told::Ill(vec!["client port", word]), gated(|gates| &gates.client, passage))
    };
    vec![
        gate("hangs", "within", Passage::Silent),
        gate("reset", "", Passage::Resets),
        gate("HTML", "greet", Passage::Says("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")),
        gate("cut off", "", Passage::Says("INFO {\"server_id\": \"x\"")),
        gate("other certificate", "clients and peers refuse", Passage::Masquerades),
    ]
}

/// The node's own route port. Routes have no greeting.
fn route_handshake() -> Vec<Trial> {
    const CALL: &str = "handshake with the route port";
    let gate = |fault, word, passage| {
        trial(CALL, fault, Told::Ill(vec!["route port", word]), gated(|gates| &gates.route, passage))
    };
    vec![
        gate("hangs", "within", Passage::Silent),
        gate("reset", "", Passage::Resets),
        gate("HTML", "", Passage::Says("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")),
        gate("cut off", "", Passage::Says("\u{16}\u{3}\u{3}\u{0}z")),
        gate("other certificate", "clients and peers refuse", Passage::MasqueradesToRoutes),
    ]
}

/// A peer doesn't show its certificate while a root leaves the bundle. The agent drops the root, because the leaf that the
/// peer showed last chains to another root.
fn peer_handshake() -> Vec<Trial> {
    const CALL: &str = "handshake with a peer";
    let gate = |number: usize, fault, passage: Passage| {
        trial(CALL, fault, Told::Nothing(Met::Left(number)), move |world, on| {
            world.peer.as_ref().unwrap().set(if on { passage.clone() } else { Passage::Open });
            world.leave(number);
        })
    };
    vec![
        gate(1, "hangs", Passage::Silent),
        gate(2, "reset", Passage::Resets),
        gate(3, "HTML", Passage::Says("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")),
        gate(4, "cut off", Passage::Says("\u{16}\u{3}\u{3}\u{0}z")),
    ]
}

/// The roots that leave the bundle, a root for each trial.
const LEAVING: [&str; 4] = ["old root 1", "old root 2", "old root 3", "old root 4"];

/// Sets a gate's action while the fault holds.
fn gated(of: fn(&Gates) -> &Gate, passage: Passage) -> impl Fn(&World, bool) + Send + Sync + 'static {
    move |world, on| world.gate(of).set(if on { passage.clone() } else { Passage::Open })
}

/// A first boot meets only the faults of `nats-server -t`, because no server runs yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_03_no_fault_of_the_check_at_a_first_boot_commits_anything() {
    let setup = Setup { ports: Ports::Gated, ..Setup::default() };
    table::check("nats-server, at first boot", &boot_all(setup, check()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_no_fault_of_the_way_to_nats_server_disturbs_what_it_serves() {
    let setup = || Setup { ports: Ports::Gated, ..Setup::default() };
    let calls = vec![
        (setup(), Trigger::Renew, check()),
        (Setup::default(), Trigger::Renew, signal()),
        // With the system account nobody asks monitoring.
        (Setup { system: "off", ..setup() }, Trigger::Renew, monitoring()),
        (setup(), Trigger::Renew, handshake()),
        (setup(), Trigger::Renew, route_handshake()),
        (Setup { leaving: &LEAVING, ..Setup::default() }, Trigger::Itself, peer_handshake()),
    ];
    table::check("nats-server, in a serving node", &serve_all(calls).await);
}
