//! The calls to AWS.

use std::sync::Arc;
use std::time::Duration;

use aws_double::fault::{Fault, Operation};
use aws_double::pca::{Defect, Status};

use super::world::{ROUTES, Setup, World};
use super::{Met, Told, Trial, Trigger, boot_all, boot_each, serve_all, table};

const OPERATIONS: [(Operation, &str); 6] = [
    (Operation::IssueCertificate, "acm-pca:IssueCertificate"),
    (Operation::GetCertificate, "acm-pca:GetCertificate"),
    (Operation::GetSecretValue, "secretsmanager:GetSecretValue"),
    (Operation::DescribeAutoScalingInstances, "autoscaling:DescribeAutoScalingInstances"),
    (Operation::DescribeAutoScalingGroups, "autoscaling:DescribeAutoScalingGroups"),
    (Operation::DescribeInstances, "ec2:DescribeInstances"),
];
/// The agent makes this call once in a process, when the validity may be too long for the CA.
const USAGE_MODE: (Operation, &str) = (Operation::DescribeCertificateAuthority, "acm-pca:DescribeCertificateAuthority");
/// The agent makes this call before the first certificate of a process, to learn the signing algorithm.
const ALGORITHM: (Operation, &str) =
    (Operation::GetCertificateAuthorityCertificate, "acm-pca:GetCertificateAuthorityCertificate for the algorithm");
const CREDENTIAL: (Operation, &str) =
    (Operation::GetSecretValue, "secretsmanager:GetSecretValue of the cluster credential");
/// The trust bundle comes from this call too.
const CA_CERTIFICATE: (Operation, &str) =
    (Operation::GetCertificateAuthorityCertificate, "acm-pca:GetCertificateAuthorityCertificate");

fn from_issuer() -> Setup {
    Setup { trust: "kind = \"issuer\"", ..Setup::default() }
}

/// The routes' credential is the only secret.
fn with_credential() -> Setup {
    Setup { credential: true, ..from_issuer() }
}

/// A validity that a CA may refuse.
fn for_long() -> Setup {
    Setup { validity: "8d", ..Setup::default() }
}

/// The name of a call. The name of its row begins with the call's name.
fn name((_, row): (Operation, &'static str)) -> &'static str {
    row.split(' ').next().unwrap_or(row)
}

fn trial((operation, call): (Operation, &'static str), fault: &'static str, what: Fault, told: Told) -> Trial {
    let switch = move |world: &World, on: bool| world.double.set_fault(operation, on.then(|| what.clone()));
    Trial { call, fault, told, switch: Arc::new(switch) }
}

/// A fault after which the call still succeeds.
fn unharmed(of: (Operation, &'static str), fault: &'static str, what: Fault) -> Trial {
    let met = Met::Answered(of.0, what.clone());
    trial(of, fault, what, Told::Nothing(met))
}

/// The faults of any call.
fn anywhere(of: (Operation, &'static str)) -> Vec<Trial> {
    let faults = [
        ("denied", Fault::Denied),
        ("throttled", Fault::Throttled),
        ("wrong clock", Fault::WrongClock),
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
    let trial = |(fault, what)| match (of, &what) {
        // An agent that can't learn the CA's mode leaves the validity to IssueCertificate.
        (USAGE_MODE, Fault::Denied | Fault::WrongClock | Fault::Empty) => unharmed(of, fault, what),
        (_, Fault::WrongClock) => trial(of, fault, what, Told::Ill(vec![name(of), "clock"])),
        (CREDENTIAL, _) => trial(of, fault, what, Told::Ill(vec![name(of), ROUTES])),
        _ => trial(of, fault, what, Told::Ill(vec![name(of)])),
    };
    let mut trials: Vec<_> = faults.map(trial).into();
    trials.push(unharmed(of, "slow", Fault::Delay(Duration::from_secs(2))));
    trials
}

/// The faults that only Private CA has.
fn of_the_ca(issue: (Operation, &'static str), collect: (Operation, &'static str)) -> Vec<Trial> {
    let state = |fault, status: Status| {
        let switch = move |world: &World, on: bool| {
            let status = if on { status } else { Status::Active };
            world.double.account(|aws, _| aws.pca.set_status(world.ca(), status).unwrap());
        };
        // A first boot asks for the CA's own certificate first.
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
        refused(collect, "refused", "ValidationException"),
        refused(collect, "refused for a new reason", "UnheardOfException"),
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
    let others = [
        (from_issuer(), CA_CERTIFICATE),
        (Setup::default(), ALGORITHM),
        (for_long(), USAGE_MODE),
        (with_credential(), CREDENTIAL),
    ];
    let calls = OPERATIONS.map(|operation| (Setup::default(), operation)).into_iter().chain(others);
    let trials = calls.flat_map(|(setup, of)| anywhere(of).into_iter().map(move |trial| (setup.clone(), trial)));
    table::check("AWS, at first boot", &boot_each(trials.collect()).await);
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
    calls.push((with_credential(), Trigger::Itself, anywhere(CREDENTIAL)));
    calls.push((Setup::default(), Trigger::RenewAnew, anywhere(ALGORITHM)));
    // A node may request only twelve certificates a day beyond the due certificates. Several nodes share these trials.
    let trials = anywhere(USAGE_MODE);
    calls.extend(trials.chunks(7).map(|some| (for_long(), Trigger::RenewAnew, some.to_vec())));
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

/// Private CA answers RequestFailedException for a certificate that it will never issue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_11_a_certificate_whose_request_has_failed_is_bought_exactly_once_more() {
    const FAILED: &str = "RequestFailedException";
    let (issue, collect) = (OPERATIONS[0].0, OPERATIONS[1].0);
    let mut world = World::new(&Setup::default()).await.unwrap();
    let fail_once = |world: &World| world.double.queue_faults(collect, [Some(Fault::Error(FAILED))]);
    fail_once(&world);
    let traffic = world.serve().await.unwrap();
    assert_eq!((world.double.calls(issue).len(), world.double.certificates()), (2, 2), "at first boot");

    fail_once(&world);
    world.renewed().await.unwrap();
    assert_eq!((world.double.calls(issue).len(), world.double.certificates()), (4, 4), "in a serving node");
    let log = world.log();
    let told = log.lines().filter(|line| line.contains("WARN acm-pca:GetCertificate") && line.contains(FAILED));
    assert_eq!(told.count(), 2, "{log}");
    let tally = traffic.stop().await.unwrap();
    assert_eq!((tally.lost(), tally.disconnects), (0, 0), "{tally:?}");
    world.end().await.unwrap();
}
