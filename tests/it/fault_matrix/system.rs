//! The connection to nats-server's system account.

use std::sync::Arc;

use super::relay::Treatment;
use super::world::{Ports, Setup};
use super::{Met, Told, Trial, Trigger, serve_all, table};

/// A reload without an answer or with a false answer is repeated by a signal. Without a connection the signal comes first.
fn reloads() -> Vec<Trial> {
    let treated = |treatment: Treatment, told| Trial {
        call: "system account",
        fault: treatment.word(),
        told,
        switch: Arc::new(move |world, on| world.relay().set(if on { treatment } else { Treatment::Passes })),
    };
    let unharmed = |treatment: Treatment| treated(treatment, Told::Nothing(Met::Marked(treatment.word())));
    let denied = Told::Warned(vec!["nats-server refuses the agent's user of the system account"]);
    // After a slow answer the agent leaves the system account alone for a while, so that fault comes last.
    vec![
        unharmed(Treatment::Gone),
        unharmed(Treatment::Lying),
        treated(Treatment::Denied, denied),
        unharmed(Treatment::Slow),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_no_fault_of_the_system_account_disturbs_what_nats_server_serves() {
    let setup = Setup { ports: Ports::Relayed, ..Setup::default() };
    let calls = vec![(setup, Trigger::Renew, reloads())];
    table::check("nats-server's system account, in a serving node", &serve_all(calls).await);
}
