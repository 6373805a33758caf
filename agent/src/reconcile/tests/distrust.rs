//! Distrust that is cut short.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_await_of_a_distrust_leaves_the_closing_to_the_next_process() {
    let mut has_left_the_closing = false;
    for polls in 0.. {
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
        let has_ended = polled(Box::pin(pass(&mut agent)), polls).await.is_some();
        drop(agent);
        let is_committed = !serves_and_trusts(&bench, &old).1;
        has_left_the_closing |= is_committed && bench.server.to_close.load(Ordering::Relaxed) == 3;
        let mut agent = bench.agent();
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_mins(2)).await;
        assert_eq!(serves_and_trusts(&bench, &old), (false, false), "after {polls} polls: {:?}", pass.status);
        assert_eq!(bench.server.to_close.load(Ordering::Relaxed), 0, "after {polls} polls: {:?}", pass.status);
        if has_ended {
            assert!(polls > 5, "the pass had only {polls} awaits");
            assert!(has_left_the_closing, "no crash came between the reload and the closing");
            return;
        }
    }
}
