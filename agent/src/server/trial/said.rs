//! The words of a nats-server under trial: which line tells the reason, and what a person may see of it.

use std::collections::BTreeMap;
use std::path::Path;

use zeroize::Zeroizing;

use crate::conf::trial::Stage;
use crate::conf::write::HIDDEN;

/// The largest message, in bytes.
const MAX_SAID: usize = 1024;

/// How Go spells the errors of a machine that is short of something (`syscall/zerrors_linux_*.go`).
const SHORTAGES: [&str; 7] = [
    "no space left on device",
    "disk quota exceeded",
    "cannot allocate memory",
    "too many open files",
    "resource temporarily unavailable",
    "file too large",
    "out of memory",
];

/// The levels of nats-server's log lines below a fatal one.
const LEVELS: [&str; 5] = ["[INF]", "[WRN]", "[ERR]", "[DBG]", "[TRC]"];

/// Whether nats-server ended for want of memory, disk space or file descriptors, rather than by its settings.
pub(super) fn is_shortage(said: &str) -> bool {
    SHORTAGES.iter().any(|shortage| said.contains(shortage))
}

/// Whether a line begins Go's report of a crash. A long list of goroutines follows.
pub(super) fn is_crash(line: &str) -> bool {
    line.starts_with("panic: ") || line.starts_with("fatal error: ")
}

/// The line that tells why the server ended: `nats-server: …`, `[FTL] …`, or a line without a level. nats-server
/// reports a log that it can't open without a level. Where no such line exists, the last line counts.
pub(super) fn reason<'a>(lines: &(impl DoubleEndedIterator<Item = &'a str> + Clone)) -> Option<&'a str> {
    let is_reason = |line: &&str| !line.is_empty() && !LEVELS.iter().any(|level| line.starts_with(level));
    let crashed = lines.clone().find(|line| is_crash(line));
    let named = || lines.clone().find(|line| line.starts_with("nats-server: ") || line.starts_with("[FTL] "));
    let said = crashed.or_else(named).or_else(|| lines.clone().rev().find(is_reason));
    let said = said.or_else(|| lines.clone().next_back())?;
    let said =
        ["nats-server: ", "[FTL] ", "[ERR] "].iter().find_map(|prefix| said.strip_prefix(prefix)).unwrap_or(said);
    Some(said.trim())
}

/// A message as a person may see it: with the values of the settings in the place of the trial's values, and without
/// secrets.
pub(super) fn told(
    said: &str,
    stage: &Stage,
    ports: &BTreeMap<String, String>,
    config: &Path,
    secrets: &[Zeroizing<String>],
) -> String {
    let said = stage.original(&without_position(said, &config.to_string_lossy()), ports);
    let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shortened(&hidden(said, secrets))
}

/// Removes the positions in the trial's configuration, because nobody can look there.
fn without_position(said: &str, config: &str) -> String {
    let mut told = String::new();
    let mut rest = said;
    while let Some((before, after)) = rest.split_once(config) {
        told.push_str(before);
        let position = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':');
        rest = position.strip_prefix(' ').unwrap_or(position);
        if position.len() == after.len() {
            told.push_str("the settings");
            rest = after;
        }
    }
    told.push_str(rest);
    told
}

/// A word of one or two letters is no secret, and its removal would make the message unreadable.
fn hidden(mut said: String, secrets: &[Zeroizing<String>]) -> String {
    let mut secrets: Vec<&str> =
        secrets.iter().map(|secret| secret.as_str()).filter(|secret| secret.len() > 2).collect();
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    for secret in secrets {
        // Go's `%q` escapes what a message quotes.
        let quoted = Zeroizing::new(secret.replace('\\', "\\\\").replace('"', "\\\""));
        said = said.replace(secret, HIDDEN).replace(quoted.as_str(), HIDDEN);
    }
    said
}

fn shortened(said: &str) -> String {
    const ELLIPSIS: &str = "…";
    if said.len() <= MAX_SAID {
        return said.trim().to_owned();
    }
    let end = (0..=MAX_SAID - ELLIPSIS.len()).rev().find(|end| said.is_char_boundary(*end)).unwrap_or_default();
    format!("{}{ELLIPSIS}", said.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_fatal_line() {
        for (lines, told) in [
            (&["[INF] Starting", "[FTL] Could not write pidfile", "[INF] Exiting"][..], "Could not write pidfile"),
            (&["nats-server: account missing", ""], "account missing"),
            (&["[INF] Reloaded: log_file = x", "error opening file: open x", "[ERR] y"], "error opening file: open x"),
            (&["panic: nil map", "", "goroutine 1 [running]:"], "panic: nil map"),
            (&["[INF] a", "[ERR] b"], "b"),
        ] {
            assert_eq!(reason(&lines.iter().copied()), Some(told));
        }
        assert_eq!(reason(&[].into_iter()), None);
    }

    #[test]
    fn a_position_in_the_trials_file_is_left_out() {
        let said = "/t/n.conf:3:12: unknown field \"x\" (see /t/n.conf)";
        assert_eq!(without_position(said, "/t/n.conf"), "unknown field \"x\" (see the settings)");
    }

    #[test]
    fn invariant_01_a_secret_is_hidden_however_it_is_quoted() {
        let secrets = ["pa\"ss", "pa\"ss-longer", "ab"].map(|secret| Zeroizing::new(secret.to_owned()));
        let said = hidden("pa\"ss-longer pa\\\"ss ab".to_owned(), &secrets);
        assert_eq!(said, format!("{HIDDEN} {HIDDEN} ab"));
    }

    #[test]
    fn a_message_has_a_kilobyte_at_most() {
        let said = shortened(&"ä".repeat(2000));
        assert!(said.len() <= MAX_SAID && said.ends_with("ä…"));
    }
}
