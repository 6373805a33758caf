//! Distrust that is cut short.

use super::*;

/// Crashes the pass of a distrust at the first await where `crashes` returns true, and starts the next process. Returns whether the pass
/// ended before.
async fn crash_a_distrust(at: &str, mut crashes: impl FnMut(&Bench) -> bool) -> bool {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let mut agent = bench.serving().await;
    let (old, both) = with_next_ca(&bench).await;
    *bench.trust.0.lock().unwrap() = Some(both.clone());
    bench.live(&mut agent, START + Duration::from_mins(6)).await;
    bench.server.to_close.store(3, Ordering::Relaxed);
    *bench.trust.0.lock().unwrap() = Some(both.without(&fingerprints(&old)).unwrap());
    // The bundle is asked for again.
    bench.clock.sleep_until(START + Duration::from_mins(8)).await;
    let has_ended = crashed(Box::pin(pass(&mut agent)), || crashes(&bench)).await.is_some();
    drop(agent);
    let mut agent = bench.agent();
    let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_mins(2)).await;
    assert_eq!(serves_and_trusts(&bench, &old), (false, false), "after a crash at {at}: {:?}", pass.status);
    assert_eq!(bench.server.to_close.load(Ordering::Relaxed), 0, "after a crash at {at}: {:?}", pass.status);
    has_ended
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_await_of_a_distrust_leaves_the_closing_to_the_next_process() {
    for awaits in 0.. {
        if crash_a_distrust(&format!("await {awaits}"), crash_after(awaits)).await {
            assert!(awaits > 5, "the pass had only {awaits} awaits");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_the_reload_and_the_closing_leaves_the_closing_to_the_next_process() {
    let mut reloads = None;
    let is_between = |bench: &Bench| {
        let begun = *reloads.get_or_insert(bench.server.reloads());
        bench.server.reloads() > begun && bench.server.to_close.load(Ordering::Relaxed) == 3
    };
    assert!(!crash_a_distrust("the closing", is_between).await);
}
