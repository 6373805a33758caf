//! The simulation with a small fleet.

#![expect(clippy::print_stdout, reason = "a test prints the report of its run")]

use std::time::Duration;

use simulation::{Report, Share, rush_hour, turnover, year};

/// An arbitrary seed. A failure prints the seed that repeats it.
const SEED: u64 = 3;

fn assert_kept(report: &Report) {
    println!("{report}");
    assert!(report.is_kept(), "{report}");
}

#[test]
fn invariant_07_a_simulated_fleet_outlives_a_month_of_outages_crashes_replacements_and_a_new_ca() {
    let report = year(10, 28, Duration::from_hours(12), SEED, |_| {}).unwrap();
    assert_kept(&report);
    let figures = &report.figures;
    assert!(figures.node_days >= 10 * 25 && figures.rollovers >= 1 && figures.killed > 0, "{report}");
    // A node renews every four to five days.
    assert!(figures.issued >= 10 * 28 / 5 && figures.issued <= 10 * 28 / 3, "{report}");
}

#[test]
fn a_simulated_fleet_at_rush_hour_stays_within_the_quotas_and_reloads_a_third_at_a_time() {
    let report = rush_hour(vec![3, 5, 5], SEED, |_| {}).unwrap();
    assert_kept(&report);
    assert!(report.figures.reloading.values().all(|share| *share != Share::default()), "{report}");
}

#[test]
fn gossip_saves_nine_of_ten_reloads_in_a_day_of_ten_replacements() {
    let day = |tells_routes| {
        let report = turnover(tells_routes, SEED, |_| {}).unwrap();
        assert_kept(&report);
        assert_eq!(report.figures.replacements, 10, "{report}");
        report.figures.reloads
    };
    // Without reported routes, each change of peers is loaded at once.
    let (told, untold) = std::thread::scope(|scope| {
        let untold = scope.spawn(|| day(false));
        (day(true), untold.join().unwrap())
    });
    println!(
        "reloads of five nats-servers in a day of ten replacements: {untold}, and {told} where routes are reported"
    );
    assert!(untold > 40, "each replacement is loaded by the four others: {untold}");
    assert!(told * 10 < untold, "{told} reloads in place of {untold}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| year(3, 6, Duration::from_hours(12), seed, |_| {}).unwrap().figures;
    let first = run(SEED);
    assert_eq!(first, run(SEED));
    assert_ne!(first, run(SEED + 1));
}
