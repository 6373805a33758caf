//! The matrix as a table, and its place in `docs/`.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, Write as _};

use harness::soak;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fault-matrix.md");
const UPDATE: &str = "UPDATE_FAULT_MATRIX";

/// The cell of a call and a fault.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) call: &'static str,
    pub(super) fault: &'static str,
    /// The result in a word or two, or the failure.
    pub(super) outcome: Result<String, String>,
}

/// Prints the table, fails with every failed cell, and compares the table with the document's table of this heading.
pub(super) fn check(heading: &str, cells: &[Cell]) {
    let table = table(cells);
    soak::say(&format!("{heading}\n\n{table}"));
    soak::figure(&format!("fault matrix: cells of {heading}"), cells.len());
    let wrong = cells.iter().filter_map(|cell| {
        let why = cell.outcome.as_ref().err()?;
        Some(format!("{} × {}: {why}", cell.call, cell.fault))
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{heading}:\n{}", wrong.join("\n"));

    // A read-only checkout still gets the comparison.
    let is_update = std::env::var_os(UPDATE).is_some();
    let mut file = OpenOptions::new().read(true).write(is_update).open(DOCUMENT).unwrap();
    // Other tests keep their tables in the same document.
    file.lock().unwrap();
    let mut document = String::new();
    file.read_to_string(&mut document).unwrap();
    let title = format!("## {heading}\n");
    let start = document.find(&title).unwrap_or_else(|| panic!("{DOCUMENT} has no {title:?}")) + title.len();
    let end = document[start..].find("\n## ").map_or(document.len(), |end| start + end + 1);
    let begin = document[start..end].find("\n|").map_or(end, |begin| start + begin + 1);
    let kept = document[begin..end].trim_end();
    if is_update {
        let rest = if end == document.len() { "" } else { "\n" };
        let gap = if document[..begin].ends_with("\n\n") { "" } else { "\n" };
        document.replace_range(begin..end, &format!("{gap}{}\n{rest}", table.trim_end()));
        file.rewind().unwrap();
        file.set_len(0).unwrap();
        file.write_all(document.as_bytes()).unwrap();
        return;
    }
    assert_eq!(kept, table.trim_end(), "docs/fault-matrix.md differs; find the cause, then run with {UPDATE}=1");
}

fn table(tried: &[Cell]) -> String {
    let (mut calls, mut faults) = (Vec::new(), Vec::new());
    for cell in tried {
        if !calls.contains(&cell.call) {
            calls.push(cell.call);
        }
        if !faults.contains(&cell.fault) {
            faults.push(cell.fault);
        }
    }
    let mut text = format!("| call | {} |\n|---|{}\n", faults.join(" | "), "---|".repeat(faults.len()));
    for call in calls {
        // Writing to a string can't fail.
        _ = write!(text, "| `{call}` |");
        for fault in &faults {
            let found = tried.iter().find(|cell| cell.call == call && cell.fault == *fault);
            let word = match found.map(|cell| &cell.outcome) {
                Some(Ok(word)) => word,
                Some(Err(_)) => "**wrong**",
                None => "–",
            };
            _ = write!(text, " {word} |");
        }
        text.push('\n');
    }
    text
}
