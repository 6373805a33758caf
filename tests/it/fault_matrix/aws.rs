//! The calls to AWS.

use std::sync::Arc;
use std::time::Duration;

use aws_double::fault::{Fault, Operation};
use aws_double::pca::{Defect, Status};

use super::world::{Setup, World};
use super::{Met, Told, Trial, Trigger, boot_all, serve_all, table};

const OPERATIONS: [(Operation, &str); 6] = [
    (Operation::IssueCertificate, "acm-pca:IssueCertificate"),
    (Operation::GetCertificate, "acm-pca:GetCertificate"),
    (Operation::GetSecretValue, "secretsmanager:GetSecretValue"),
    (Operation::DescribeAutoScalingInstances, "autoscaling:DescribeAutoScalingInstances"),
    (Operation::DescribeAutoScalingGroups, "autoscaling:DescribeAutoScalingGroups"),
    (Operation::DescribeInstances, "ec2:DescribeInstances"),
];
const CA_CERTIFICATE: (Operation, &str) =
    (Operation::GetCertificateAuthorityCertificate, "acm-pca:GetCertificateAuthorityCertificate");

fn from_issuer() -> Setup {
    Setup { trust: "kind = \"issuer\"", ..Setup::default() }
}

fn trial((operation, call): (Operation, &'static str), fault: &'static str, what: Fault, told: Told) -> Trial {
    let switch = move |world: &World, on: bool| world.double.set_fault(operation, on.then(|| what.clone()));
    Trial { call, fault, told, switch: Arc::new(switch) }
}

/// A fault after which the call succeeds all the same.
fn unharmed(of: (Operation, &'static str), fault: &'static str, what: Fault) -> Trial {
    let met = Met::Answered(of.0, what.clone());
    trial(of, fault, what, Told::Nothing(met))
}

/// What can happen to any call.
fn anywhere(of: (Operation, &'static str)) -> Vec<Trial> {
    let faults = [
        ("denied", Fault::Denied),
        ("throttled", Fault::Throttled),
        ("500", Fault::Status(500)),
        ("503", Fault::Status(503)),
        ("hangs", Fault::Hang),
        ("answer lost", Fault::LoseAnswer),
        ("reset", Fault::Reset),
        ("cut off", Fault::Truncated),
        ("half", Fault::Half),
        ("9 MiB", Fault::Huge),
        ("HTML", Fault::Html),
        ("empty", Fault::Empty),
    ];
    let mut trials: Vec<_> = faults.map(|(name, fault)| trial(of, name, fault, Told::Ill(vec![of.1]))).into();
    trials.push(unharmed(of, "slow", Fault::Delay(Duration::from_secs(2))));
    trials
}

/// What only Private CA does.
fn of_the_ca(issue: (Operation, &'static str), collect: (Operation, &'static str)) -> Vec<Trial> {
    let state = |fault, status: Status| {
        let switch = move |world: &World, on: bool| {
            let status = if on { status } else { Status::Active };
            world.double.account(|aws, _| aws.pca.set_status(world.ca(), status).unwrap());
        };
        // A first boot asks for the CA's own certificate before.
        Trial { call: issue.1, fault, told: Told::Ill(vec!["acm-pca:", "InvalidState"]), switch: Arc::new(switch) }
    };
    let in_progress = |world: &World, on: bool| {
        let takes = if on { time::Duration::seconds(3) } else { time::Duration::ZERO };
        world.double.account(|aws, _| aws.pca.issuance_takes = takes);
    };
    let waits = Met::Refused(collect.0, "RequestInProgressException");
    let refused =
        |of: (Operation, &'static str), fault, code| trial(of, fault, Fault::Error(code), Told::Ill(vec![of.1, code]));
    let defective = |fault, defect, word| {
        trial(collect, fault, Fault::Certificate(defect), Told::Ill(vec!["no new certificate", word]))
    };
    vec![
        state("CA disabled", Status::Disabled),
        state("CA expired", Status::Expired),
        state("CA pending", Status::PendingCertificate),
        refused(issue, "quota", "LimitExceededException"),
        refused(issue, "refused", "ValidationException"),
        Trial { call: collect.1, fault: "in progress", told: Told::Nothing(waits), switch: Arc::new(in_progress) },
        refused(collect, "not found", "ResourceNotFoundException"),
        defective("other key", Defect::OtherKey, "key"),
        defective("no SAN", Defect::NoSan, "carries none"),
        defective("a SAN less", Defect::MissingSan, "lacks the names"),
        defective("server use only", Defect::ServerAuthOnly, "usage"),
        defective("expired", Defect::Expired, "was valid until"),
        defective("not yet valid", Defect::NotYetValid, "is valid from"),
        defective("other CA", Defect::OtherAuthority, "does not chain to the trust bundle"),
        trial(collect, "no chain", Fault::ChainMissing, Told::Ill(vec![collect.1])),
        unharmed(collect, "chain in disorder", Fault::ChainOutOfOrder),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_no_fault_of_aws_at_first_boot_costs_more_than_time() {
    let trials = OPERATIONS.iter().flat_map(|operation| anywhere(*operation)).collect();
    let (mut cells, by_issuer) =
        tokio::join!(boot_all(Setup::default(), trials), boot_all(from_issuer(), anywhere(CA_CERTIFICATE)));
    cells.extend(by_issuer);
    table::check("AWS, at first boot", &cells);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_no_fault_of_aws_disturbs_a_serving_node() {
    let calls = OPERATIONS.iter().map(|operation| {
        let trigger = match operation.0 {
            Operation::IssueCertificate | Operation::GetCertificate => Trigger::Renew,
            Operation::DescribeAutoScalingInstances => Trigger::HangUp,
            Operation::DescribeInstances => Trigger::NewPeer,
            _ => Trigger::Itself,
        };
        (Setup::default(), trigger, anywhere(*operation))
    });
    let mut calls: Vec<_> = calls.collect();
    calls.push((from_issuer(), Trigger::Itself, anywhere(CA_CERTIFICATE)));
    table::check("AWS, in a serving node", &serve_all(calls).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_a_ca_that_refuses_or_errs_is_told_and_paid_once() {
    let trials = || of_the_ca(OPERATIONS[0], OPERATIONS[1]);
    let booted = boot_all(Setup::default(), trials()).await;
    table::check("Private CA, at first boot", &booted);
    let (first, second): (Vec<_>, Vec<_>) = trials().into_iter().partition(|trial| trial.call == OPERATIONS[0].1);
    let served = serve_all(vec![(Setup::default(), Trigger::Renew, first), (Setup::default(), Trigger::Renew, second)]);
    table::check("Private CA, in a serving node", &served.await);
}
