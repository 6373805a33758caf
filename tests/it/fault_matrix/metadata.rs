//! Instance metadata.

use std::sync::Arc;

use harness::imds::{Fault, Question};

use super::world::{Setup, World};
use super::{Told, Trial, Trigger, boot_all, serve_all, table};

const QUESTIONS: [(Question, &str, &str); 3] = [
    (Question::Token, "IMDS: token", "instance metadata"),
    (Question::Identity, "IMDS: identity", "instance metadata"),
    (Question::Credentials, "IMDS: credentials", "credentials"),
];

fn trials((question, call, word): (Question, &'static str, &'static str)) -> Vec<Trial> {
    let faults = [
        ("403", Fault::Status(403)),
        ("404", Fault::Status(404)),
        ("500", Fault::Status(500)),
        ("hangs", Fault::Hang),
        ("reset", Fault::Reset),
        ("cut off", Fault::Truncated),
        ("9 MiB", Fault::Huge),
        ("HTML", Fault::Answer("<html><body>Please log in</body></html>".into())),
    ];
    let trial = |(name, fault): (&'static str, Fault)| {
        let switch = move |world: &World, on: bool| world.imds.set_fault_of(question, on.then(|| fault.clone()));
        Trial { call, fault: name, told: Told::Ill(vec![word]), switch: Arc::new(switch) }
    };
    faults.map(trial).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_no_fault_of_instance_metadata_at_first_boot_costs_more_than_time() {
    let cells = boot_all(Setup::default(), QUESTIONS.into_iter().flat_map(trials).collect()).await;
    table::check("Instance metadata, at first boot", &cells);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_no_fault_of_instance_metadata_disturbs_a_serving_node() {
    let calls = QUESTIONS.map(|question| (Setup::default(), Trigger::Restart, trials(question)));
    table::check("Instance metadata, in a serving node", &serve_all(calls.into()).await);
}
