//! Compares the commands in the documents with the commands that exist.

use std::fs;
use std::path::PathBuf;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::{Arguments, cargo};

/// Every Markdown file of the repository.
fn documents() -> Vec<PathBuf> {
    let built = ["target", ".git"];
    let mut found = Vec::new();
    let mut directories = vec![cargo::workspace()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.extend((!built.iter().any(|name| path.ends_with(name))).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The commands in a document. A command is a line of a shell code block, or a text between backticks.
fn commands(markdown: &str) -> Vec<&str> {
    const COMMAND: &str = "cargo xtask ";
    let (mut found, mut block) = (Vec::new(), None::<&str>);
    for line in markdown.lines() {
        let line = line.trim_start();
        if let Some(language) = line.strip_prefix("```") {
            block = block.xor(Some(language));
        } else if block == Some("sh") {
            found.extend(line.split(" #").next().and_then(|line| line.find(COMMAND).map(|start| &line[start..])));
        } else if block.is_none() {
            found.extend(line.split('`').skip(1).step_by(2).filter(|text| text.starts_with(COMMAND)));
        }
    }
    found
}

#[test]
fn the_documents_commands_are_those_that_there_are() {
    let mut count = 0;
    for document in documents() {
        for command in commands(&fs::read_to_string(&document).unwrap()) {
            let parsed = Arguments::try_parse_from(command.split_whitespace().skip(1));
            let is_one = parsed.map_or_else(|error| error.kind() == ErrorKind::DisplayHelp, |_arguments| true);
            assert!(is_one, "{}: {command}", document.display());
            count += 1;
        }
    }
    assert!(count >= 20, "{count} commands");
}

#[test]
fn commands_of_blocks_and_of_the_prose_are_found() {
    let text = "Run `cargo xtask demo`, or\n\n```sh\nA=1 cargo xtask test -- x # all\n```\n\nnot\n\n```text\ncargo xtask no\n```\n";
    assert_eq!(commands(text), ["cargo xtask demo", "cargo xtask test -- x"]);
}
