//! Reloads that fail, and roll-backs that fail.

use super::*;
use crate::conf::effective::SettingsError;
use crate::server::Asked;
use crate::server::monitor::{RouteConnection, Routez};
use crate::server::system::Answer;

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_of_the_signal_is_told_so_and_its_next_start_comes_to_serve_what_was_paid_for() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let before = bench.committed();
    bench.server.dies.store(true, Ordering::Relaxed);
    let died = renew(&mut agent).await.outcome.unwrap_err();
    let PassError::Deploy(DeployError::RolledBack { mismatch, confirmed: false }) = &died else { panic!("{died:?}") };
    assert!(matches!(mismatch, Mismatch::Ended { pid: 1, .. }), "{mismatch}");
    // The new configuration may be the cause of the server's end, so the next start reads the old configuration.
    assert_eq!(bench.committed(), before);
    bench.server.dies.store(false, Ordering::Relaxed);
    bench.server.start();
    let pass = bench.live(&mut agent, START + Duration::from_hours(1)).await;
    assert_eq!((pass.status.state, bench.issuer.requests()), (State::Healthy, 2), "{:?}", pass.status.reasons);
    assert_eq!(bench.server.served().map(|leaf| leaf.serial), pass.status.leaf.map(|leaf| leaf.serial));
}

#[tokio::test(start_paused = true)]
async fn a_request_to_the_system_account_without_effect_is_repeated_by_a_signal() {
    for answer in [Some(Answer::Loaded), None] {
        let bench = Bench::new().await;
        let mut agent = bench.serving().await;
        *bench.server.system.lock().unwrap() = Some(Asked { pid: 1, answer });
        let pass = renew(&mut agent).await;
        assert_eq!((pass.status.state, bench.server.reloads()), (State::Healthy, 1), "{:?}", pass.status.reasons);
        assert_eq!(bench.issuer.requests(), 2);
        assert_eq!(bench.server.served().map(|leaf| leaf.serial), pass.status.leaf.map(|leaf| leaf.serial));
    }
}

/// One route to each of these peers.
fn routes_to(bench: &Bench, peers: &[u8]) {
    let routes = peers.iter().map(|number| RouteConnection {
        remote_id: format!("server {number}"),
        remote_name: format!("i-{number}"),
        ip: Some([127, 0, 0, *number].into()),
        start: None,
    });
    *bench.server.routez.lock().unwrap() = Some(Routez { routes: routes.collect() });
}

#[tokio::test(start_paused = true)]
async fn a_change_of_peers_alone_is_loaded_with_the_next_reload_while_every_peer_has_a_route() {
    let bench = Bench::new().await;
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2]));
    routes_to(&bench, &[2]);
    let mut agent = bench.serving().await;
    let before = bench.server.loaded().unwrap().text.clone();
    for count in [3, 4] {
        let all: Vec<u8> = (1..=count).collect();
        routes_to(&bench, &all[1..]);
        *bench.peers.0.lock().unwrap() = Some(peers(&all));
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(1)).await;
        assert_eq!((pass.status.state, bench.server.reloads()), (State::Healthy, 0), "{:?}", pass.status.reasons);
        assert!(bench.committed().contains(&format!("127.0.0.{count}:1")));
        assert_eq!(bench.server.loaded().unwrap().text, before);
    }
    let pass = renew(&mut agent).await;
    assert_eq!((pass.status.state, bench.server.reloads()), (State::Healthy, 1), "{:?}", pass.status.reasons);
    assert_eq!(bench.server.loaded().unwrap().text, bench.committed());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_up_and_has_no_route_is_loaded_after_a_minute_and_at_once_where_routes_are_not_reported() {
    let bench = Bench { interval: Duration::from_secs(30), ..Bench::new().await };
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2]));
    routes_to(&bench, &[2]);
    let mut agent = bench.serving().await;
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3]));
    bench.live(&mut agent, bench.clock.now() + Duration::from_mins(10)).await;
    assert_eq!(bench.server.reloads(), 0, "the peer is down, so nothing is loaded");
    bench.dial.answering.lock().unwrap().insert(peers(&[3])[0].address);
    bench.live(&mut agent, bench.clock.now() + Duration::from_mins(4)).await;
    assert_eq!((bench.server.reloads(), &bench.server.loaded().unwrap().text), (1, &bench.committed()));

    *bench.server.routez.lock().unwrap() = None;
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3, 4]));
    bench.live(&mut agent, bench.clock.now() + Duration::from_mins(4)).await;
    assert_eq!((bench.server.reloads(), &bench.server.loaded().unwrap().text), (2, &bench.committed()));
}

/// A reload that is under way, after its first pass.
async fn reloading(bench: &Bench, seconds: u64) -> Box<Reconciler> {
    let mut agent = bench.serving().await;
    bench.server.reload_seconds.store(seconds, Ordering::Relaxed);
    let pass = renew(&mut agent).await;
    assert!(matches!(pass.outcome, Ok(Standing::Reloading { .. })), "{:?}", pass.outcome);
    assert_eq!((pass.status.state, bench.server.reloads()), (State::Degraded, 1));
    assert_eq!(pass.status.reasons[0].code, "reload_under_way");
    assert!(bench.committed().contains("generations/000002"));
    agent
}

#[tokio::test(start_paused = true)]
async fn invariant_16_a_slow_reload_is_waited_for_without_a_second_signal_and_nothing_is_taken_back() {
    for seconds in [12, 19, 32, 200] {
        let bench = Bench::new().await;
        let mut agent = Box::pin(reloading(&bench, seconds)).await;
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_secs(seconds)).await;
        assert_eq!((pass.status.state, bench.server.reloads()), (State::Healthy, 1), "{:?}", pass.status.reasons);
        assert_eq!(bench.server.served().map(|leaf| leaf.serial), pass.status.leaf.map(|leaf| leaf.serial));
        assert_eq!(bench.issuer.requests(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_16_a_reload_that_never_ends_is_told_after_its_time_limit_and_taken_back_by_nobody() {
    let bench = Bench::new().await;
    let mut agent = Box::pin(reloading(&bench, 3_600)).await;
    let committed = bench.committed();
    let limit = NatsConfig::default().reload.timeout;
    let pass = bench.live(&mut agent, bench.clock.now() + limit + Duration::from_secs(30)).await;
    assert_eq!(pass.status.state, State::Failing);
    let codes: Vec<&str> = pass.status.reasons.iter().map(|reason| reason.code.as_str()).collect();
    assert!(codes.contains(&"reload_timed_out"), "{codes:?}");
    assert_eq!((bench.committed(), bench.server.reloads()), (committed, 1));
    let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(2)).await;
    assert_eq!((pass.status.state, bench.issuer.requests()), (State::Healthy, 2), "{:?}", pass.status.reasons);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_of_a_slow_reload_finds_the_previous_configuration() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let before = bench.committed();
    bench.server.reload_seconds.store(60, Ordering::Relaxed);
    assert!(matches!(renew(&mut agent).await.outcome, Ok(Standing::Reloading { .. })));
    bench.server.stop();
    let died = agent.pass(&PassRequest::default(), &Progress::default()).await.outcome.unwrap_err();
    let PassError::Deploy(DeployError::RolledBack { mismatch, .. }) = &died else { panic!("{died:?}") };
    assert!(matches!(mismatch, Mismatch::Ended { .. }), "{mismatch}");
    assert_eq!(bench.committed(), before);
}

#[tokio::test(start_paused = true)]
async fn invariant_18_a_first_start_counts_on_every_version_so_a_bad_file_holds_no_certificate_back() {
    for is_mute in [false, true] {
        let mut bench = Bench::new().await;
        bench.server.is_old.store(true, Ordering::Relaxed);
        bench.server.is_mute.store(is_mute, Ordering::Relaxed);
        drop(bench.serving().await);
        bench.template = Some(bench.state().join("gone.tera"));
        let mut agent = bench.agent();
        let pass = bench.live(&mut agent, START + Duration::from_hours(24 * 6)).await;
        assert_eq!(pass.status.state, State::Degraded, "{:?}", pass.status.reasons);
        let newest = pass.status.leaf.unwrap();
        assert!(newest.generation > 1, "nothing was renewed");
        assert_eq!(bench.server.served().map(|leaf| leaf.serial), Some(newest.serial), "mute: {is_mute}");
    }
}

#[tokio::test(start_paused = true)]
async fn settings_with_which_nats_server_ends_at_each_start_are_taken_back_after_the_third_death() {
    let mut bench = Bench::new().await;
    drop(bench.serving().await);
    bench.server.stop();
    let before = bench.name;
    bench.name = "another";
    let mut agent = bench.agent();
    bench.server.ends_at_start.store(true, Ordering::Relaxed);
    let name = || setting(&bench.committed(), "server_name").unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..5 {
        outcomes.push(agent.pass(&PassRequest::default(), &Progress::default()).await);
        if name() == before && outcomes.len() > 1 {
            break;
        }
        assert_eq!(name(), "another");
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.server.start();
    }
    let last = outcomes.pop().unwrap();
    assert!(matches!(last.outcome, Err(PassError::Deploy(DeployError::PutBack))), "{:?}", last.outcome);
    assert_eq!((name().as_str(), outcomes.len()), (before, 3));
    assert!(last.status.reasons.iter().any(|reason| reason.code == "settings_put_back"), "{:?}", last.status.reasons);

    bench.server.ends_at_start.store(false, Ordering::Relaxed);
    bench.server.start();
    let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(24 * 6)).await;
    assert_eq!((name().as_str(), pass.status.state), (before, State::Degraded), "{:?}", pass.status.reasons);
    assert!(pass.status.reasons.iter().any(|reason| reason.code == "settings_quarantined"));
    assert!(bench.issuer.requests() > 1, "the certificate was renewed beside the quarantine");
    assert_eq!(bench.server.served().map(|leaf| leaf.serial), pass.status.leaf.map(|leaf| leaf.serial));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_at_each_start_with_the_settings_that_it_ran_with_is_failing() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.server.stop();
    bench.server.ends_at_start.store(true, Ordering::Relaxed);
    let mut pass = agent.pass(&PassRequest::default(), &Progress::default()).await;
    for _ in 0..3 {
        assert_eq!(pass.status.state, State::Degraded, "{:?}", pass.status.reasons);
        bench.server.start();
        pass = agent.pass(&PassRequest::default(), &Progress::default()).await;
    }
    assert_eq!(pass.status.state, State::Failing, "{:?}", pass.status.reasons);
    assert!(pass.status.reasons.iter().any(|reason| reason.code == "server_crash_loop"), "{:?}", pass.status.reasons);
}

#[tokio::test(start_paused = true)]
async fn invariant_10_a_server_that_accepts_no_client_is_not_signalled_and_nothing_is_taken_back() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.server.is_deaf.store(true, Ordering::Relaxed);
    let waits = renew(&mut agent).await;
    assert!(
        matches!(waits.outcome, Err(PassError::Deploy(DeployError::Server(ServerError::NotListening { .. })))),
        "{:?}",
        waits.outcome
    );
    // The server refused no configuration, so the next start reads the new certificate.
    assert!(bench.committed().contains("generations/000002"));
    assert_eq!((bench.server.reloads(), waits.status.state), (0, State::Failing));
    bench.server.is_deaf.store(false, Ordering::Relaxed);
    let pass = bench.live(&mut agent, START + Duration::from_hours(1)).await;
    assert_eq!((pass.status.state, bench.issuer.requests()), (State::Healthy, 2), "{:?}", pass.status.reasons);
}

/// The server is busy with the logins of many clients: a handshake hangs, and the next handshake is answered.
#[tokio::test(start_paused = true)]
async fn invariant_16_a_server_that_has_loaded_everything_and_hangs_is_not_told_to_reload() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.server.is_deaf.store(true, Ordering::Relaxed);
    let logins = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.server.is_deaf.store(false, Ordering::Relaxed);
    };
    let (request, progress) = (PassRequest::default(), Progress::default());
    let (hangs, ()) = tokio::join!(agent.pass(&request, &progress), logins);
    assert!(matches!(hangs.outcome, Ok(Standing::NotServed(_))), "{:?}", hangs.outcome);
    let pass = bench.live(&mut agent, START + Duration::from_mins(2)).await;
    assert_eq!((pass.status.state, bench.server.reloads()), (State::Healthy, 0), "{:?}", pass.status.reasons);
}

#[tokio::test(start_paused = true)]
async fn invariant_02_a_disk_that_is_full_at_any_point_of_a_roll_back_leaves_a_whole_and_says_that_it_was_one() {
    let mut barred = 0;
    for points in 0.. {
        let bench = Bench::new().await;
        let agent = bench.serving().await;
        bench.server.ignores.store(true, Ordering::Relaxed);
        let Some(ended) = renew_with(agent, points, Fault::DiskFull).await else {
            assert!(barred > 2, "only {barred} points of a roll-back were passed");
            return;
        };
        let (mut agent, failed) = ended.expect("a full disk is no crash");
        assert_whole(&bench);
        let error = failed.outcome.unwrap_err();
        if let PassError::Deploy(DeployError::NotRolledBack { .. }) = error {
            barred += 1;
            let said = reasons(&failed.status);
            assert!(said.contains("did not come to serve") && said.contains("can't be put back"), "{said}");
            assert_eq!(failed.status.state, State::Degraded, "what served serves on");
        }
        bench.server.ignores.store(false, Ordering::Relaxed);
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(1)).await;
        assert_eq!(pass.status.state, State::Healthy, "after a full disk at point {points}: {:?}", pass.status.reasons);
        assert_eq!(bench.paid_for(), 2, "after a full disk at point {points}");
    }
}

/// A change to a serving node, and its expected outcome.
struct Change {
    renew: bool,
    faults: &'static [Fault],
    /// The least number of disk points that the change passes.
    floor: u32,
    begin: fn(&mut Bench, more: &str),
    /// Removes the obstacle that `begin` put up.
    heal: fn(&Bench),
    is_done: fn(&Bench, &Pass) -> bool,
}

impl Change {
    /// Crashes, or fills the disk, at each point of the change. A new process of the agent must complete the change.
    ///
    /// After every other crash nats-server starts anew from the files on the disk; otherwise it runs on.
    async fn suffer_everywhere(&self) {
        let elsewhere = tempfile::tempdir().unwrap();
        let more = Local::new(elsewhere.path().to_owned(), Clock::steppable(START)).ca_pem().await.unwrap();
        for fault in self.faults.iter().copied() {
            for points in 0.. {
                let at = format!("after {fault:?} at point {points}");
                let Some(bench) = Box::pin(self.suffer(fault, points, &more, &at)).await else {
                    assert!(points >= self.floor, "only {points} points were passed, {at}");
                    break;
                };
                assert_whole(&bench);
                let paid = if self.renew && (fault == Fault::DiskFull || bench.issuer.requests() > 1) { 2 } else { 1 };
                assert_eq!(bench.paid_for(), paid, "{at}");
            }
        }
    }

    /// Returns `None` where the change has fewer points.
    async fn suffer(&self, fault: Fault, points: u32, more: &str, at: &str) -> Option<Bench> {
        let mut bench = Bench::new().await;
        bench.serving().await;
        (self.begin)(&mut bench, more);
        let wanted = PassRequest { renew: self.renew, ..PassRequest::default() };
        let ended = pass_with(bench.agent(), wanted, points, fault).await?;
        assert_whole(&bench);
        (self.heal)(&bench);
        let mut agent = if let Ok((agent, failed)) = ended {
            assert_eq!(fault, Fault::DiskFull, "there was no crash, {at}");
            let is_told = failed.outcome.is_err() || failed.status.state == State::Healthy;
            assert!(is_told, "{at}: {:?}", failed.status);
            agent
        } else {
            assert_eq!(fault, Fault::Crash, "a full disk is no crash");
            if points.is_multiple_of(2) {
                bench.server.start();
            }
            bench.agent()
        };
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(1)).await;
        assert_eq!(pass.status.state, State::Healthy, "{at}: {:?}", pass.status.reasons);
        assert!((self.is_done)(&bench, &pass), "{at}: {:?}", pass.status);
        assert_eq!(bench.server.served().map(|leaf| leaf.serial), pass.status.leaf.map(|leaf| leaf.serial), "{at}");
        Some(bench)
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_02_a_crash_at_any_point_of_a_roll_back_leaves_a_whole_and_the_next_process_ends_it() {
    let change = Change {
        renew: true,
        faults: &[Fault::Crash],
        floor: 45,
        begin: |bench, _| bench.server.ignores.store(true, Ordering::Relaxed),
        heal: |bench| bench.server.ignores.store(false, Ordering::Relaxed),
        is_done: |_, _| true,
    };
    Box::pin(change.suffer_everywhere()).await;
}

/// Two commits: the new certificate alone, and then the setting for nats-server's next start.
fn that_waits_for_a_restart(faults: &'static [Fault]) -> Change {
    Change {
        renew: true,
        faults,
        floor: 55,
        begin: |bench, _| bench.name = "another",
        heal: |_| {},
        is_done: |bench, _| setting(&bench.committed(), "server_name").as_deref() == Some("another"),
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_02_a_crash_at_any_point_of_a_change_that_waits_for_a_restart_leaves_a_whole() {
    Box::pin(that_waits_for_a_restart(&[Fault::Crash]).suffer_everywhere()).await;
}

#[tokio::test(start_paused = true)]
async fn invariant_02_a_full_disk_at_any_point_of_a_change_that_waits_for_a_restart_leaves_a_whole() {
    Box::pin(that_waits_for_a_restart(&[Fault::DiskFull]).suffer_everywhere()).await;
}

#[tokio::test(start_paused = true)]
async fn invariant_02_a_crash_or_a_full_disk_at_any_point_of_a_change_of_the_bundle_leaves_a_whole() {
    let change = Change {
        renew: false,
        faults: &[Fault::Crash, Fault::DiskFull],
        floor: 25,
        begin: |bench, more| {
            let mut bundle = bench.trust.0.lock().unwrap();
            let more = TrustBundle::parse(more.as_bytes(), "double", "2").unwrap();
            bundle.as_mut().unwrap().anchors.extend(more.anchors);
        },
        heal: |_| {},
        is_done: |bench, pass| {
            let generations = Generations::of(&bench.state());
            let number = generations.named_in(&bench.committed()).unwrap();
            let committed = generations.load(number).unwrap().bundle.anchors.len();
            (committed, pass.status.trust.as_ref().map(|trust| trust.anchors.len())) == (2, Some(2))
        },
    };
    Box::pin(change.suffer_everywhere()).await;
}

#[tokio::test(start_paused = true)]
async fn invariant_02_a_crash_or_a_full_disk_at_any_point_of_a_change_of_peers_leaves_a_whole() {
    let change = Change {
        renew: false,
        faults: &[Fault::Crash, Fault::DiskFull],
        floor: 15,
        begin: |bench, _| *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3, 4])),
        heal: |_| {},
        is_done: |bench, _| {
            let committed = bench.committed();
            committed.contains("127.0.0.4:1\"") && committed.contains("generations/000001")
        },
    };
    Box::pin(change.suffer_everywhere()).await;
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_waits_survives_a_look_without_monitoring_and_goes_on_holding_back_nothing() {
    let mut bench = Bench::new().await;
    bench.serving().await;
    bench.name = "another";
    let mut agent = bench.agent();
    pass(&mut agent).await;
    bench.server.is_mute.store(true, Ordering::Relaxed);
    let unheard = pass(&mut agent).await;
    assert!(warns(&unheard.status, "monitoring port"), "{:?}", unheard.status);
    bench.server.is_mute.store(false, Ordering::Relaxed);
    for _ in 0..2 {
        let renewed = renew(&mut agent).await;
        assert!(matches!(renewed.outcome, Ok(Standing::Served(_))), "{:?}", renewed.outcome);
        let waits = warns(&renewed.status, "takes server_name only at a start");
        assert!(waits && renewed.status.state == State::Healthy, "{:?}", renewed.status);
    }
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_was_taken_back_waits_no_longer_though_the_reload_was_rolled_back() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let waits = |pass: &Pass| warns(&pass.status, "only at a start");
    agent.node.name = "another".into();
    assert!(waits(&pass(&mut agent).await));
    agent.node.name = "i-1".into();
    bench.server.ignores.store(true, Ordering::Relaxed);
    let failed = renew(&mut agent).await;
    assert!(matches!(failed.outcome, Err(PassError::Deploy(DeployError::RolledBack { .. }))), "{:?}", failed.outcome);
    assert!(!waits(&failed), "{:?}", failed.status.warnings);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_taken_after_one_that_waited_ends_the_waiting() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    // The reload takes longer than the agent waits, and succeeds later.
    bench.server.ignores.store(true, Ordering::Relaxed);
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3, 4]));
    agent.sources.peers.retry.next = OffsetDateTime::UNIX_EPOCH;
    drop(pass(&mut agent).await);
    bench.server.ignores.store(false, Ordering::Relaxed);
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3, 4, 5]));
    bench.live(&mut agent, START + Duration::from_hours(2)).await;
    let reloads = bench.server.reloads();
    let settled = bench.live(&mut agent, START + Duration::from_hours(4)).await;
    assert_eq!(settled.status.state, State::Healthy, "{:?}", settled.status.reasons);
    assert_eq!(bench.server.reloads(), reloads, "it is told to reload again and again");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_was_not_confirmed_beside_a_template_that_does_not_render_is_tried_again() {
    let mut bench = Bench::new().await;
    bench.serving().await;
    bench.template = Some(bench.directory.path().join("gone.tera"));
    let mut agent = bench.agent();
    bench.server.ignores.store(true, Ordering::Relaxed);
    let failed = renew(&mut agent).await;
    assert!(matches!(failed.outcome, Err(PassError::Settings(SettingsError::Render(_)))), "{:?}", failed.outcome);
    bench.server.ignores.store(false, Ordering::Relaxed);
    let pass = bench.live(&mut agent, START + Duration::from_hours(1)).await;
    assert_eq!(bench.server.served().map(|leaf| leaf.serial), pass.status.leaf.map(|leaf| leaf.serial));
    assert_eq!((pass.status.state, bench.issuer.requests()), (State::Degraded, 2), "{:?}", pass.status.reasons);
}

/// nats-server before 2.11 reports no digest, so its start doesn't show what it loaded.
#[tokio::test(start_paused = true)]
async fn invariant_18_the_first_renewal_after_a_boot_without_a_digest_goes_on_beside_settings_that_are_refused() {
    for is_seen in [true, false] {
        let mut bench = Bench::new().await;
        bench.server.is_old.store(true, Ordering::Relaxed);
        if is_seen {
            bench.serving().await;
            let running = bench.server.config.with_file_name("nats-server.conf.running");
            assert_eq!(std::fs::read_to_string(running).unwrap(), bench.committed());
        } else {
            pass(&mut bench.agent()).await;
            bench.server.start();
        }
        bench.template = Some(bench.directory.path().join("gone.tera"));
        let renewed = renew(&mut bench.agent()).await;
        assert!(matches!(renewed.outcome, Err(PassError::Settings(_))), "{:?}", renewed.outcome);
        assert_eq!(bench.issuer.requests(), 2);
        assert_eq!(bench.server.served().map(|leaf| leaf.serial), renewed.status.leaf.map(|leaf| leaf.serial));
    }
}

#[tokio::test(start_paused = true)]
async fn a_roll_back_is_told_while_the_next_attempt_waits_for_its_turn() {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let mut agent = bench.serving().await;
    // The first node of a cluster has its turn in the first ten seconds of a minute.
    bench.clock.sleep_until(START + Duration::from_secs(20)).await;
    bench.server.ignores.store(true, Ordering::Relaxed);
    renew(&mut agent).await.outcome.unwrap_err();
    let waits = pass(&mut agent).await;
    assert_eq!(waits.status.state, State::Degraded, "{:?}", waits.status);
    bench.server.ignores.store(false, Ordering::Relaxed);
    let pass = bench.live(&mut agent, START + Duration::from_mins(5)).await;
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
}
