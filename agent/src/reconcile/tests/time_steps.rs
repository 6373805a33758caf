//! Wrong clocks, steps of a clock, and certificates of every lifetime.

use super::*;

fn hours(hours: i64) -> time::Duration {
    time::Duration::hours(hours)
}

fn days(days: i64) -> time::Duration {
    time::Duration::days(days)
}

/// Asserts that a peer that joins is found within an hour, so the sources are still polled.
async fn assert_alert(bench: &Bench, agent: &mut Reconciler) {
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3, 9]));
    let hour = bench.clock.now() + Duration::from_hours(1);
    while !bench.committed().contains("127.0.0.9:1\"") {
        let pass = pass(agent).await;
        assert!(bench.clock.now() < hour, "the group was not looked at again: {:?}", pass.status.reasons);
        bench.clock.sleep_until(pass.next).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_tears_nothing_down_issues_nothing_and_puts_nothing_off() {
    for back in [hours(3), days(6)] {
        let bench = Bench::new().await;
        let mut agent = bench.serving().await;
        let renewed = renew(&mut agent).await;
        assert_eq!(renewed.status.state, State::Healthy, "{:?}", renewed.status.reasons);
        let (before, served) = (bench.committed(), bench.server.served());
        bench.clock.step(-back);
        let stepped = pass(&mut agent).await;
        // The embedded CA dates a leaf back by one minute, so the leaf is not valid yet.
        assert_eq!(stepped.status.state, State::Degraded);
        let told = reasons(&stepped.status);
        assert!(told.contains("the certificate is valid from 2026-03-01") && told.contains("clock"), "{told}");
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_mins(90)).await;
        assert_eq!((bench.committed(), bench.server.served()), (before, served), "{:?}", pass.status.reasons);
        assert_eq!((bench.server.reloads(), bench.issuer.requests()), (1, 2));
        assert_alert(&bench, &mut agent).await;
        // After the clock is set right, the node is as before.
        bench.clock.step(back);
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(1)).await;
        assert_eq!((pass.status.state, bench.issuer.requests()), (State::Healthy, 2), "{:?}", pass.status.reasons);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_was_years_ahead_heals_when_it_is_set() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.clock.step(days(3 * 365));
    let ahead = pass(&mut agent).await;
    assert_eq!(ahead.status.state, State::Healthy, "{:?}", ahead.status.reasons);
    bench.clock.step(-days(3 * 365));
    // The served leaf becomes valid in three years, so the agent asks for a leaf that is valid now.
    let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(1)).await;
    assert_eq!((pass.status.state, bench.issuer.requests()), (State::Healthy, 3), "{:?}", pass.status.reasons);
    assert!(bench.server.served().unwrap().not_before < bench.clock.now());
    assert_alert(&bench, &mut agent).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_by_hours_is_no_reason_for_anything_and_by_days_for_one_renewal() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.clock.step(hours(12));
    let pass_after = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(1)).await;
    assert_eq!((pass_after.status.state, bench.issuer.requests()), (State::Healthy, 1));
    for requests in [2, 3] {
        bench.clock.step(days(8));
        let woken = pass(&mut agent).await;
        assert_eq!(
            (woken.status.state, bench.issuer.requests()),
            (State::Healthy, requests),
            "{:?}",
            woken.status.reasons
        );
        assert!(bench.server.served().unwrap().not_after > bench.clock.now());
        bench.live(&mut agent, bench.clock.now() + Duration::from_hours(12)).await;
        assert_eq!(bench.issuer.requests(), requests);
    }
}

/// A step of the clock over days looks like the passing of days, and the cap can't distinguish the two. So each such
/// step may cost a certificate that looks due. A step of hours costs no certificate.
#[tokio::test(start_paused = true)]
async fn invariant_11_a_clock_that_is_set_to_and_fro_all_day_issues_none_for_hours_and_one_a_step_for_weeks() {
    for (by, at_most) in [(hours(3), 1), (days(8), 1 + 2 * 12)] {
        let bench = Bench::new().await;
        let mut agent = bench.serving().await;
        for _ in 0..12 {
            for step in [by, -by] {
                bench.clock.step(step);
                for _ in 0..8 {
                    let pass = pass(&mut agent).await;
                    bench.clock.sleep_until(pass.next).await;
                }
            }
        }
        assert!(bench.issuer.requests() <= at_most, "{} certificates for 24 steps of {by}", bench.issuer.requests());
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(2)).await;
        assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_11_a_first_boot_with_the_clock_behind_waits_for_the_clock_with_one_certificate() {
    // Some steps are shorter than a lifetime and look like the passing of time. The other steps are longer.
    for behind in [hours(3), days(2), days(20), days(20 * 365)] {
        let bench = Bench::between(Clock::steppable(START - behind), Clock::starting_at(START)).await;
        let mut agent = bench.agent();
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < Duration::from_hours(2) {
            let waits = pass(&mut agent).await;
            assert!(
                matches!(
                    waits.outcome,
                    Err(PassError::Rejected(RejectedChain::NotYetValid { .. }) | PassError::Waits(_))
                ),
                "{:?}",
                waits.outcome
            );
            assert_eq!(waits.status.state, State::Failing);
            let told = reasons(&waits.status);
            assert!(told.contains("is valid from") && told.contains("set this machine's clock"), "{told}");
            bench.clock.sleep_until(waits.next).await;
        }
        assert_eq!(bench.issuer.requests(), 1, "{behind} behind");
        assert!(!bench.server.config.exists());
        bench.clock.step(behind);
        while !bench.server.config.exists() {
            let pass = pass(&mut agent).await;
            assert!(begun.elapsed() < Duration::from_hours(3), "{:?}", pass.status.reasons);
            bench.clock.sleep_until(pass.next).await;
        }
        bench.server.start();
        let healed = pass(&mut agent).await;
        assert_eq!((healed.status.state, bench.issuer.requests()), (State::Healthy, 1), "{:?}", healed.status.reasons);
    }
}

/// Each certificate looks expired on arrival, as if the issuer were wrong. So the agent pays more and more rarely.
#[tokio::test(start_paused = true)]
async fn invariant_11_a_first_boot_with_the_clock_a_month_ahead_pays_rarely_and_heals_when_it_is_set() {
    let bench = Bench::between(Clock::steppable(START + days(30)), Clock::starting_at(START)).await;
    let mut agent = bench.agent();
    while bench.clock.now() < START + days(31) {
        let waits = pass(&mut agent).await;
        let told = reasons(&waits.status);
        assert!(told.contains("was valid until"), "{told}");
        bench.clock.sleep_until(waits.next).await;
    }
    let paid = bench.issuer.requests();
    // A pause takes between half and the whole of 10 minutes, 20, 40 and so on, so ten payments fit into a day at most.
    assert!((2..=10).contains(&paid), "{paid} certificates in a day");
    bench.clock.step(-days(30));
    while !bench.server.config.exists() {
        let pass = pass(&mut agent).await;
        bench.clock.sleep_until(pass.next).await;
    }
    bench.server.start();
    assert_eq!((pass(&mut agent).await.status.state, bench.issuer.requests()), (State::Healthy, paid + 1));
}

/// A new process asks at once, because an operator may have corrected something. The next pause is as long as without the restart.
#[tokio::test(start_paused = true)]
async fn invariant_11_a_restart_pays_for_one_certificate_and_keeps_the_pause_that_has_grown() {
    let bench = Bench::between(Clock::steppable(START + days(30)), Clock::starting_at(START)).await;
    let mut paid = Vec::new();
    for process in 1..=4 {
        let (mut agent, before) = (bench.agent(), bench.issuer.requests());
        // A process that ends during an issuance leaves the payment of the next process to itself.
        let is_under_way = || Journal::of(&bench.state()).load().unwrap().pending.is_some();
        while bench.clock.now() < START + days(30) + hours(6) * process || is_under_way() {
            let waits = pass(&mut agent).await;
            bench.clock.sleep_until(waits.next).await;
        }
        paid.push(bench.issuer.requests() - before);
    }
    assert!(paid[0] >= 4 && paid[1..].iter().all(|later| (1..=2).contains(later)), "{paid:?}");
}

#[tokio::test(start_paused = true)]
async fn certificates_of_a_minute_are_renewed_every_time_and_none_expires() {
    let bench = Bench { validity: Duration::from_mins(1), interval: Duration::from_secs(20), ..Bench::new().await };
    let mut agent = bench.serving().await;
    let pass = bench.live(&mut agent, START + Duration::from_mins(30)).await;
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    assert!((42..=53).contains(&bench.issuer.requests()), "{} issued", bench.issuer.requests());
}

/// Ten years of virtual sleep would take minutes of real time, so the test sets the clock.
#[tokio::test(start_paused = true)]
async fn certificates_of_ten_years_are_renewed_in_their_seventh() {
    let bench = Bench { validity: 3650 * DAY, ..Bench::new().await };
    let mut agent = bench.serving().await;
    let mut renewed = Vec::new();
    for month in 1..=96 {
        bench.clock.step(days(30));
        let requests = bench.issuer.requests();
        let pass = pass(&mut agent).await;
        assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
        renewed.extend((bench.issuer.requests() > requests).then_some(month));
    }
    assert!(matches!(renewed[..], [month] if (73..=82).contains(&month)), "renewed in the months {renewed:?}");
}

#[tokio::test(start_paused = true)]
async fn invariant_05_an_anchor_is_kept_for_a_served_leaf_whose_time_the_clock_says_is_over_or_not_come() {
    for step in [days(30), -days(2)] {
        let bench = Bench::new().await;
        *bench.peers.0.lock().unwrap() = Some(peers(&[1]));
        let mut agent = bench.serving().await;
        bench.moods.is_away.store(true, Ordering::Relaxed);
        bench.clock.step(step);
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Local::new(elsewhere.path().to_owned(), bench.clock).ca_pem().await.unwrap();
        *bench.trust.0.lock().unwrap() = Some(TrustBundle::parse(other.as_bytes(), "double", "2").unwrap());
        let begun = tokio::time::Instant::now();
        loop {
            let pass = pass(&mut agent).await;
            let trust = pass.status.trust.unwrap();
            if trust.version.starts_with('2') {
                assert_eq!(trust.anchors.len(), 2, "after a step of {step}: {trust:?}");
                break;
            }
            assert!(begun.elapsed() < Duration::from_hours(3), "{trust:?}");
            bench.clock.sleep_until(pass.next).await;
        }
    }
}
