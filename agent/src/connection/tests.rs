use proptest::prelude::*;

use super::*;
use crate::x509::test_ca::{Ca, NOW};

fn bundle(cas: &[&Ca]) -> TrustBundle {
    let pem: String = cas.iter().map(|ca| ca.pem.as_str()).collect();
    TrustBundle::parse(pem.as_bytes(), "test", "1").unwrap()
}

fn known(bundle: &TrustBundle) -> Known<'_> {
    Known {
        bundle,
        cluster: "prod",
        urls: vec!["tls://a:4222".into(), "tls://b:4222".into()],
        needs_certificate: false,
    }
}

#[test]
fn the_document_has_flat_keys_that_ecs_can_pick_and_the_rest_for_programs() {
    let ca = Ca::root("ca");
    let bundle = bundle(&[&ca]);
    let document = Document::of(&Known { needs_certificate: true, ..known(&bundle) }, None, NOW);
    let json: serde_json::Value = serde_json::from_str(&document.to_json()).unwrap();
    let sha256 = bundle.anchors[0].sha256.as_str();
    let expected = serde_json::json!({
        "NATS_URL": "tls://a:4222,tls://b:4222",
        "NATS_CA": ca.pem,
        "NATS_TLS_REQUIRED": "true",
        "NATS_CLIENT_CERT": "required",
        "version": 1,
        "cluster": "prod",
        "changed_at": "2026-03-01T12:00:00Z",
        "trusts_from": { sha256: "2026-03-01T12:00:00Z" },
    });
    assert_eq!(json, expected);
    assert_eq!(usable(document.to_json().as_bytes()).unwrap(), document);
}

#[test]
fn a_document_that_says_the_same_is_the_same_and_an_anchor_keeps_its_time() {
    let (old, new) = (Ca::root("old"), Ca::root("new"));
    let (one, both) = (bundle(&[&old]), bundle(&[&old, &new]));
    let first = Document::of(&known(&one), None, NOW);
    let later = NOW + Duration::from_hours(24);
    assert_eq!(Document::of(&known(&one), Some(&first), later), first);
    let second = Document::of(&known(&both), Some(&first), later);
    let times: Vec<_> = both.anchors.iter().map(|anchor| second.trusts_from[&anchor.sha256].as_str()).collect();
    assert_eq!(times, ["2026-03-01T12:00:00Z", "2026-03-02T12:00:00Z"]);
    assert_eq!(second.changed_at, "2026-03-02T12:00:00Z");
    let third = Document::of(&known(&bundle(&[&new])), Some(&second), later);
    assert_eq!(third.trusts_from.len(), 1);
    assert!(second.serves(&third) && second.serves(&first) && !first.serves(&second));
    assert!(second.trusts_all_of(&first) && second.trusts_all_of(&third) && !third.trusts_all_of(&first));
    let unreadable = Document { ca: "-----BEGIN".into(), ..first.clone() };
    assert!(!unreadable.trusts_all_of(&unreadable) && first.trusts_all_of(&unreadable));
    // A time ahead would hold a rollover up, and no time can be read from nonsense.
    for wrong in ["2030-01-01T00:00:00Z", "soon"] {
        let mut edited = first.clone();
        edited.trusts_from.values_mut().for_each(|time| *time = wrong.into());
        assert_eq!(Document::of(&known(&one), Some(&edited), NOW), first);
    }
}

#[test]
fn the_keys_of_others_stay() {
    let ca = Ca::root("ca");
    let one = bundle(&[&ca]);
    let edited = br#"{"NATS_USER": "app", "NATS_URL": "nats://wrong", "more": {"a": [1]}}"#;
    let Content::Document(before) = read(edited) else { panic!("an object is a document with keys missing") };
    let put_right = Document::of(&known(&one), Some(&before), NOW);
    assert_eq!((put_right.others["NATS_USER"].as_str(), &put_right.url[..12]), (Some("app"), "tls://a:4222"));
    assert_eq!(put_right.others["more"], serde_json::json!({"a": [1]}));
}

#[test]
fn two_writers_of_one_change_make_one_version_and_a_return_makes_another() {
    let ca = Ca::root("ca");
    let one = bundle(&[&ca]);
    let first = Document::of(&known(&one), None, NOW);
    let second = Document::of(&known(&one), None, NOW + Duration::from_secs(3));
    assert_ne!(first, second);
    assert_eq!(first.token(Some("v1")), second.token(Some("v1")));
    assert_ne!(first.token(Some("v1")), first.token(Some("v2")));
    let other = Document { cluster: "other".into(), ..first.clone() };
    assert_ne!(first.token(Some("v1")), other.token(Some("v1")));
    // Secrets Manager takes 32 to 64 characters.
    assert!((32..=64).contains(&first.token(None).len()));
    assert!(Stored { content: Zeroizing::default(), version: first.token(None) }.is_by_agent());
}

#[test]
fn the_urls_are_configured_or_the_names_or_the_nodes() {
    let nodes: Vec<SocketAddr> = vec!["10.0.1.5:6222".parse().unwrap(), "[fd00::1]:6222".parse().unwrap()];
    let text = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
    assert_eq!(urls(&text(&["tls://x:1"]), &text(&["a"]), &nodes, 4222), ["tls://x:1"]);
    assert_eq!(urls(&[], &text(&["*.nats.internal", "nats.internal"]), &nodes, 4222), ["tls://nats.internal:4222"]);
    assert_eq!(urls(&[], &text(&["*.nats.internal"]), &nodes, 4222), ["tls://10.0.1.5:4222", "tls://[fd00::1]:4222"]);
}

#[test]
fn a_reader_refuses_what_it_cannot_connect_by_and_says_what_is_missing() {
    let ca = Ca::root("ca");
    let good = Document::of(&known(&bundle(&[&ca])), None, NOW);
    let told = |document: &Document| usable(document.to_json().as_bytes()).unwrap_err().0;
    assert!(told(&Document { url: " ".into(), ..good.clone() }).contains("NATS_URL"));
    assert!(told(&Document { ca: String::new(), ..good.clone() }).contains("NATS_CA"));
    assert!(told(&Document { version: 2, ..good.clone() }).contains("version 2"));
    let many = |count: usize| Document { url: vec!["tls://a:4222"; count].join(","), ..good.clone() };
    assert!(told(&many(MAX_URLS + 1)).contains("has 101 URLs under NATS_URL"));
    assert_eq!(usable(many(MAX_URLS).to_json().as_bytes()).unwrap().urls().count(), MAX_URLS);
    assert!(usable(br#"{"NATS_URL": "tls://a"#).is_err());
    assert!(usable(b"[]").is_err());
}

proptest! {
    #[test]
    fn no_word_of_a_secret_is_in_what_a_reader_is_told(word in "[g-z]{12}", around in "(?s).{0,20}|\\{\"NATS_URL\": \"|\\{\"version\": \"") {
        let content = format!("{around}{word}\"}}");
        if let Err((what, remedy)) = usable(content.as_bytes()) {
            prop_assert!(!what.contains(&word) && !remedy.contains(&word), "{what}; {remedy}");
        }
    }
}
