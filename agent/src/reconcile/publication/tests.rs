use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::*;
use crate::error::{RemoteError, RemoteErrorKind};
use crate::reason::Code;
use crate::x509::test_ca::{Ca, NOW};

const INTERVAL: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_mins(10);

/// A secret in memory, with Secrets Manager's rule of tokens. A test may make it fail or slow.
#[derive(Default)]
struct SecretInMemory {
    versions: Mutex<Vec<Stored>>,
    fails: Mutex<Option<RemoteErrorKind>>,
    delay: Mutex<Duration>,
    writes: AtomicUsize,
}

impl SecretInMemory {
    async fn answer(&self) -> Result<(), SecretError> {
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        match *self.fails.lock().unwrap() {
            Some(kind) => Err(RemoteError::new(kind, "secretsmanager:PutSecretValue", "refused", "see").into()),
            None => Ok(()),
        }
    }

    fn edit(&self, content: &str) {
        let mut versions = self.versions.lock().unwrap();
        let version = format!("by-hand-{}", versions.len());
        versions.push(Stored { content: Zeroizing::new(content.as_bytes().to_vec()), version });
    }

    fn document(&self) -> Document {
        let versions = self.versions.lock().unwrap();
        connection::usable(&versions.last().expect("a version").content).unwrap()
    }

    fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl DocumentStore for SecretInMemory {
    async fn read(&self) -> Result<Option<Stored>, SecretError> {
        self.answer().await?;
        Ok(self.versions.lock().unwrap().last().cloned())
    }

    async fn write(&self, content: &str, token: &str) -> Result<(), SecretError> {
        self.answer().await?;
        let mut versions = self.versions.lock().unwrap();
        if versions.iter().all(|stored| stored.version != token) {
            self.writes.fetch_add(1, Ordering::Relaxed);
            versions.push(Stored { content: Zeroizing::new(content.as_bytes().to_vec()), version: token.to_owned() });
        }
        Ok(())
    }
}

fn publisher(store: &Arc<SecretInMemory>) -> Publisher {
    let store = Arc::clone(store) as Arc<dyn DocumentStore>;
    Publisher::new(Publication { store, urls: Vec::new(), names: Vec::new() }, INTERVAL, &RenewalConfig::default())
}

fn wanted(cas: &[&Ca], rank: u32) -> Wanted {
    let pem: String = cas.iter().map(|ca| ca.pem.as_str()).collect();
    Wanted {
        bundle: TrustBundle::parse(pem.as_bytes(), "test", "1").unwrap(),
        cluster: "prod".into(),
        urls: vec!["tls://a:4222".into()],
        needs_certificate: false,
        rank: Some(rank),
        is_fresh: true,
    }
}

/// Attends as a daemon does, each time that a visit is due, for `span` from `from`.
async fn live(publisher: &mut Publisher, wanted: &Wanted, from: OffsetDateTime, span: Duration) -> OffsetDateTime {
    let mut now = from;
    while now < from + span {
        publisher.attend(Some(wanted.clone()), Duration::from_secs(5), now).await;
        now += INTERVAL;
    }
    now
}

fn cas(store: &SecretInMemory) -> usize {
    store.document().bundle().unwrap().anchors.len()
}

#[tokio::test(start_paused = true)]
async fn the_first_node_writes_what_is_missing_and_nothing_that_is_there() {
    let (store, ca) = (Arc::new(SecretInMemory::default()), Ca::root("ca"));
    let mut publisher = publisher(&store);
    live(&mut publisher, &wanted(&[&ca], 0), NOW, Duration::from_hours(2)).await;
    assert_eq!(store.writes(), 1);
    assert_eq!(publisher.status().unwrap().urls, ["tls://a:4222"]);
    assert_eq!(publisher.warnings().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_ten_minutes_after_a_change_and_a_distrust_waits_for_nothing() {
    let (store, old, new) = (Arc::new(SecretInMemory::default()), Ca::root("old"), Ca::root("new"));
    let mut publisher = publisher(&store);
    let now = live(&mut publisher, &wanted(&[&old], 0), NOW, INTERVAL).await;
    let both = wanted(&[&old, &new], 0);
    let now = live(&mut publisher, &both, now, Duration::from_mins(9)).await;
    assert_eq!(cas(&store), 1);
    let now = live(&mut publisher, &both, now, 3 * INTERVAL).await;
    assert_eq!(cas(&store), 2);
    let distrusted = [both.bundle.anchors[0].sha256.parse().unwrap()].into();
    let without = Wanted { bundle: both.bundle.clone().without(&distrusted).unwrap(), ..both };
    live(&mut publisher, &without, now, 2 * INTERVAL).await;
    assert_eq!((cas(&store), store.writes()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_secret_changed_by_hand_is_put_right_within_an_interval_and_again_after_ten_minutes() {
    let (store, ca) = (Arc::new(SecretInMemory::default()), Ca::root("ca"));
    let (mut publisher, wanted) = (publisher(&store), wanted(&[&ca], 0));
    let mut now = live(&mut publisher, &wanted, NOW, INTERVAL).await;
    for edit in ["{}", "not json"] {
        store.edit(edit);
        now = live(&mut publisher, &wanted, now, 2 * INTERVAL).await;
        assert_eq!(store.document().url, "tls://a:4222");
        now += PAUSE;
    }
    // After another edit at once, the agent waits for the pause.
    store.edit("{}");
    now = live(&mut publisher, &wanted, now, 2 * INTERVAL).await;
    let writes = store.writes();
    store.edit("{}");
    live(&mut publisher, &wanted, now, 2 * INTERVAL).await;
    assert_eq!(store.writes(), writes);
}

#[tokio::test(start_paused = true)]
async fn two_first_nodes_make_one_version_and_the_document_is_never_wrong() {
    let (store, ca) = (Arc::new(SecretInMemory::default()), Ca::root("ca"));
    *store.delay.lock().unwrap() = Duration::from_millis(100);
    let (mut one, mut two) = (publisher(&store), publisher(&store));
    let wanted = wanted(&[&ca], 0);
    for round in 0..20 {
        let at = |seconds| NOW + INTERVAL * round + Duration::from_secs(seconds);
        let shortest = Duration::from_secs(5);
        tokio::join!(
            one.attend(Some(wanted.clone()), shortest, at(0)),
            two.attend(Some(wanted.clone()), shortest, at(2))
        );
        assert_eq!(cas(&store), 1);
    }
    assert_eq!(store.writes(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_next_node_writes_where_the_first_does_not_and_takes_no_anchor_out() {
    let (store, old, new) = (Arc::new(SecretInMemory::default()), Ca::root("old"), Ca::root("new"));
    let mut next = publisher(&store);
    let now = live(&mut next, &wanted(&[&old], 1), NOW, Duration::from_secs(570)).await;
    assert_eq!(store.writes(), 0);
    let now = live(&mut next, &wanted(&[&old], 1), now, PATIENCE).await;
    assert_eq!((store.writes(), cas(&store)), (1, 1));
    let now = live(&mut next, &wanted(&[&new], 1), now, 4 * PATIENCE).await;
    assert_eq!((store.writes(), cas(&store)), (2, 2));
    // An old bundle changes nothing, whatever the rank.
    let stale = Wanted { is_fresh: false, ..wanted(&[&old], 0) };
    live(&mut next, &stale, now, 4 * PATIENCE).await;
    assert_eq!((store.writes(), cas(&store)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn nodes_that_differ_stop_after_one_round_and_say_so() {
    let (store, ca) = (Arc::new(SecretInMemory::default()), Ca::root("ca"));
    let (mut first, mut next) = (publisher(&store), publisher(&store));
    let (of_first, of_next) = (wanted(&[&ca], 0), Wanted { cluster: "other".into(), ..wanted(&[&ca], 1) });
    let mut now = NOW;
    while now < NOW + 20 * PATIENCE {
        first.attend(Some(of_first.clone()), Duration::from_secs(5), now).await;
        next.attend(Some(of_next.clone()), Duration::from_secs(5), now).await;
        now += INTERVAL;
    }
    assert_eq!((store.document().cluster.as_str(), store.writes()), ("prod", 3));
    let codes: Vec<_> = next.warnings().map(|reason| reason.code()).collect();
    assert_eq!(codes, [Code::ConnectionDisputed]);
}

#[tokio::test(start_paused = true)]
async fn a_newer_document_stays_and_is_a_reason() {
    let (store, ca) = (Arc::new(SecretInMemory::default()), Ca::root("ca"));
    store.edit(r#"{"version": 2, "servers": []}"#);
    let mut publisher = publisher(&store);
    live(&mut publisher, &wanted(&[&ca], 0), NOW, 3 * PATIENCE).await;
    let codes: Vec<_> = publisher.warnings().map(|reason| reason.code()).collect();
    assert_eq!((codes, store.writes()), (vec![Code::ConnectionNewer], 0));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_refuses_is_a_warning_and_a_slow_secret_holds_a_pass_up_for_a_second() {
    let (store, ca) = (Arc::new(SecretInMemory::default()), Ca::root("ca"));
    *store.fails.lock().unwrap() = Some(RemoteErrorKind::Denied);
    let (mut publisher, wanted) = (publisher(&store), wanted(&[&ca], 0));
    let mut now = live(&mut publisher, &wanted, NOW, INTERVAL).await;
    let codes: Vec<_> = publisher.warnings().map(|reason| reason.code()).collect();
    assert_eq!(codes, [Code::ConnectionDenied]);
    *store.fails.lock().unwrap() = None;
    *store.delay.lock().unwrap() = Duration::from_secs(15);
    for _ in 0..3 {
        now += INTERVAL;
        let began = tokio::time::Instant::now();
        publisher.attend(Some(wanted.clone()), Duration::from_secs(5), now).await;
        assert!(began.elapsed() <= GRACE + Duration::from_millis(10), "{:?}", began.elapsed());
        tokio::time::sleep(INTERVAL).await;
    }
    assert_eq!((store.writes(), publisher.warnings().count()), (1, 0));
}

#[test]
fn the_first_node_is_the_first_in_service_whose_route_is_not_down() {
    let peer = |last: u8, state: &str, route| PeerStatus {
        id: format!("i-{last}"),
        address: format!("10.0.1.{last}:6222"),
        state: state.into(),
        route,
    };
    let own = |last: u8| SocketAddr::from(([10, 0, 1, last], 6222));
    let peers = [
        peer(1, "Terminating:Wait", RouteState::Up),
        peer(2, "InService", RouteState::Down),
        peer(3, "InService", RouteState::Unknown),
        peer(4, "InService", RouteState::Up),
    ];
    let ranks: Vec<_> = [1, 2, 3, 4, 5].map(|last| rank(&peers, own(last))).into();
    assert_eq!(ranks, [None, Some(0), Some(0), Some(1), None]);
}
