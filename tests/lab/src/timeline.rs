//! The events on an instance since it was switched on.

use harness::table;
use serde_json::Value;
use time::{Duration, OffsetDateTime};

/// The fields that are read from the journal.
pub(crate) const FIELDS: &str = "MESSAGE,SYSLOG_IDENTIFIER,_PID,NATS_TLS_AGENT_STEP,NATS_TLS_AGENT_CODE";

/// The times of the steps, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timeline {
    /// The times in the instance's journal.
    logged: Logged,
    /// The time in `agent status` since which both ports are known to serve the leaf.
    pub(crate) confirmed: Option<OffsetDateTime>,
    /// The time at which the lab saw routes to all others in nats-server's monitoring.
    pub(crate) meshed: Option<OffsetDateTime>,
    /// The time at which the lab saw a healthy `agent status`.
    pub(crate) healthy: Option<OffsetDateTime>,
}

/// The times in a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Logged {
    /// The first message of systemd.
    boot: Option<OffsetDateTime>,
    /// cloud-init starts the commands of the user data.
    user_data: Option<OffsetDateTime>,
    /// The commands have installed the agent.
    package: Option<OffsetDateTime>,
    /// The agent has accepted its certificate.
    certificate: Option<OffsetDateTime>,
    /// The agent has put nats-server's configuration in place.
    committed: Option<OffsetDateTime>,
    /// The first entry with the code of a reason or of a warning.
    coded: Option<OffsetDateTime>,
}

impl Timeline {
    /// Reads a journal of JSON lines. The first entry of each kind counts.
    pub(crate) fn read(&mut self, journal: &str) {
        for (at, entry) in journal.lines().filter_map(entry) {
            if let Some(mark) = self.logged.mark(&entry) {
                mark.get_or_insert(at);
            }
        }
    }

    /// Whether an entry has the code of a reason or of a warning in a field of its own.
    pub(crate) fn has_code(&self) -> bool {
        self.logged.coded.is_some()
    }

    /// Seconds since the machine was switched on. A dash means that the step wasn't seen.
    fn cells(&self, booted: OffsetDateTime) -> [String; 8] {
        let Logged { boot, user_data, package, certificate, committed, coded: _ } = self.logged;
        let all = [boot, user_data, package, certificate, committed, self.confirmed, self.meshed, self.healthy];
        all.map(|at| at.map_or_else(|| "-".to_owned(), |at| seconds(at - booted)))
    }
}

impl Logged {
    /// The step that an entry belongs to.
    fn mark(&mut self, entry: &Value) -> Option<&mut Option<OffsetDateTime>> {
        let text = |field: &str| entry[field].as_str().unwrap_or_default();
        let message = text("MESSAGE");
        match text("NATS_TLS_AGENT_STEP") {
            "issued" => return Some(&mut self.certificate),
            "committed" => return Some(&mut self.committed),
            _ => {}
        }
        if !text("NATS_TLS_AGENT_CODE").is_empty() {
            return Some(&mut self.coded);
        }
        if text("_PID") == "1" {
            Some(&mut self.boot)
        } else if message.starts_with("Cloud-init v.") && message.contains("running 'modules:final'") {
            Some(&mut self.user_data)
        } else if message == "nats-node: nats-tls-agent: installed" {
            Some(&mut self.package)
        } else {
            None
        }
    }
}

/// One line: its time and its content. Times are in microseconds
/// (<https://systemd.io/JOURNAL_EXPORT_FORMATS/#journal-json-format>).
fn entry(line: &str) -> Option<(OffsetDateTime, Value)> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let micros: i128 = entry["__REALTIME_TIMESTAMP"].as_str()?.parse().ok()?;
    Some((OffsetDateTime::from_unix_timestamp_nanos(micros * 1000).ok()?, entry))
}

/// Seconds, to a tenth.
fn seconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_seconds_f64())
}

/// A table of timelines. Each instance has its id and the time at which it was switched on.
pub(crate) fn render(instances: &[(String, OffsetDateTime, Timeline)]) -> String {
    let head = [
        "seconds since its start",
        "boot",
        "user data",
        "package",
        "certificate",
        "committed",
        "TLS confirmed",
        "mesh complete",
        "healthy",
    ];
    let rows: Vec<[String; 9]> = instances
        .iter()
        .map(|(id, booted, timeline)| {
            let mut cells = timeline.cells(*booted).into_iter();
            std::array::from_fn(|column| if column == 0 { id.clone() } else { cells.next().unwrap_or_default() })
        })
        .collect();
    table::render(&head.map(String::from), &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_700_000_000;

    fn line(millis: i64, fields: &str) -> String {
        format!("{{\"__REALTIME_TIMESTAMP\": \"{}000\", {fields}}}\n", START * 1000 + millis)
    }

    #[test]
    fn the_first_entry_of_a_kind_is_when_it_happened() {
        let journal = [
            line(300, r#""_PID": "1", "MESSAGE": "systemd 252 running in system mode""#),
            line(400, r#""_PID": "1", "MESSAGE": "Queued start job""#),
            line(2_500, r#""_PID": "90", "MESSAGE": "Cloud-init v. 22.4.2 running 'modules:config' at x""#),
            line(3_000, r#""_PID": "91", "MESSAGE": "Cloud-init v. 22.4.2 running 'modules:final' at x""#),
            line(6_000, r#""_PID": "99", "MESSAGE": "nats-node: nats-tls-agent: installed""#),
            line(7_040, r#""_PID": "120", "MESSAGE": "issued 0a", "NATS_TLS_AGENT_STEP": "issued""#),
            line(7_100, r#""_PID": "120", "MESSAGE": "committed", "NATS_TLS_AGENT_STEP": "committed""#),
            line(9_100, r#""_PID": "120", "MESSAGE": "committed", "NATS_TLS_AGENT_STEP": "committed""#),
            line(9_200, r#""_PID": "120", "MESSAGE": [1, 2]"#),
            "no JSON\n".to_owned(),
        ];
        let mut timeline = Timeline::default();
        assert!(!timeline.has_code());
        let warning = r#""_PID": "120", "MESSAGE": "routes need", "NATS_TLS_AGENT_CODE": "credential_missing""#;
        timeline.read(&line(7_050, warning));
        assert!(timeline.has_code());
        timeline.read(&journal.concat());
        let start = OffsetDateTime::from_unix_timestamp(START).unwrap();
        timeline.meshed = Some(start + Duration::milliseconds(8_250));
        assert_eq!(timeline.cells(start), ["0.3", "3.0", "6.0", "7.0", "7.1", "-", "8.2", "-"]);
        let table = render(&[("i-1".into(), start, timeline)]);
        assert!(table.lines().nth(2).unwrap().starts_with("i-1 "), "{table}");
    }
}
