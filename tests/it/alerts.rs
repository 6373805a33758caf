//! The alarms use existing metrics, and are raised in time but not early.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use harness::tools;

const RULES: &str = include_str!("../../templates/prometheus/alerts.yaml");
const PLAYED: &str = include_str!("alerts.yaml");

/// The metrics that a text names.
fn metrics(text: &str) -> BTreeSet<&str> {
    let is_name = |character: char| character.is_ascii_lowercase() || character == '_';
    let words = text.split(|character| !is_name(character));
    words.filter(|word| word.starts_with("nats_tls_agent_")).collect()
}

#[test]
fn an_alarm_is_of_a_metric_that_the_documents_list() {
    let listed = metrics(include_str!("../../docs/operations.md"));
    let used = metrics(RULES);
    assert!(used.len() >= 4 && used.is_subset(&listed), "{used:?} of {listed:?}");
}

/// The test needs promtool. `cargo xtask setup` reports a missing promtool.
#[test]
fn prometheus_raises_each_alarm_in_time_and_none_for_what_passes() {
    let Some(promtool) = tools::promtool() else {
        eprintln!("SKIPPED: promtool isn't installed");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let file = directory.path().join(file);
        fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(file, text).unwrap();
    };
    write("tests/it/alerts.yaml", PLAYED);
    let play = |rules: &str| {
        write("templates/prometheus/alerts.yaml", rules);
        let output = std::process::Command::new(&promtool)
            .args(["test", "rules", "tests/it/alerts.yaml"])
            .current_dir(directory.path())
            .output()
            .unwrap();
        (output.status.success(), [output.stdout, output.stderr].concat())
    };
    let (passed, said) = play(RULES);
    assert!(passed, "{}", String::from_utf8_lossy(&said));
    for (from, to) in [
        ("state=\"failing\"", "state=\"failed\""),
        ("for: 2m", "for: 1m"),
        ("for: 2m", "for: 3m"),
        ("42 * 3600", "30 * 3600"),
        ("for: 1h", "for: 40m"),
        ("for: 10m", "for: 5m"),
        ("90 * 86400", "60 * 86400"),
        ("for: 15m", "for: 5m"),
    ] {
        assert!(RULES.contains(from), "{from} is not in the rules");
        assert!(!play(&RULES.replacen(from, to, 1)).0, "the rules pass with {to} in place of {from}");
    }
}
