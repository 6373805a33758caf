//! The README and the other documents, held against the code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Parser;
use harness::tools::workspace;
use nats_tls_agent::cli::{Cli, LossName};
use nats_tls_agent::config::Config;
use nats_tls_agent::daemon::metrics;
use nats_tls_agent::status::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DOCUMENTS: [&str; 3] = ["README.md", "docs/design.md", "docs/runbook.md"];

fn read(file: &str) -> String {
    let path = workspace().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code blocks of a language.
fn blocks(markdown: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}");
    let mut found = Vec::new();
    let mut open = None::<Vec<&str>>;
    for line in markdown.lines() {
        open = match open {
            None => (line == opening).then(Vec::new),
            Some(lines) if line == "```" => {
                found.push(lines.join("\n"));
                None
            }
            Some(mut lines) => {
                lines.push(line);
                Some(lines)
            }
        };
    }
    found
}

/// What stands under a heading, up to the next one of its level or above.
fn section<'a>(markdown: &'a str, heading: &str) -> &'a str {
    let start = markdown.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("there is no {heading:?}"));
    let body = &markdown[start + heading.len() + 2..];
    let level = heading.len() - heading.trim_start_matches('#').len();
    let ends = |line: &str| line.starts_with('#') && line.len() - line.trim_start_matches('#').len() <= level;
    let end = body.lines().take_while(|line| !ends(line)).map(|line| line.len() + 1).sum::<usize>();
    &body[..end.min(body.len())]
}

/// The cells of a table's rows, without its head.
fn rows(markdown: &str) -> Vec<Vec<&str>> {
    let table = markdown.lines().filter(|line| line.starts_with('|')).skip_while(|line| !line.starts_with("| ---"));
    table.skip(1).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The texts between backticks, outside code blocks.
fn quoted(markdown: &str) -> Vec<&str> {
    let mut inside = false;
    let prose = markdown.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !fence && !inside
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("agent.toml")).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Each leaf of a TOML text, by its dotted key.
fn keys(text: &str) -> BTreeMap<String, String> {
    fn descend(prefix: &str, table: &toml::Table, keys: &mut BTreeMap<String, String>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Table(inner) => descend(&key, inner, keys),
                value => drop(keys.insert(key, value.to_string())),
            }
        }
    }
    let mut found = BTreeMap::new();
    descend("", &text.parse().unwrap(), &mut found);
    found
}

/// `templates/agent.toml` with the keys that it shows in comments: all of them, or those whose value is the default.
fn template(examples_too: bool) -> String {
    let is_key = |line: &str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase());
    let enable = |line: &str| match line.strip_prefix('#') {
        Some(key) if is_key(line) && (examples_too || !line.ends_with("# an example")) => key.to_owned(),
        _ => line.to_owned(),
    };
    read("templates/agent.toml").lines().map(enable).collect::<Vec<_>>().join("\n")
}

/// The keys that a table of the configuration knows, by what it answers to an unknown one.
fn known(table: &str) -> BTreeSet<String> {
    let (text, prefix) = match table {
        "" => ("zzz = 1".to_owned(), String::new()),
        _ => (format!("[{table}]\nzzz = 1"), format!("{table}.")),
    };
    let error = Config::parse(&text, Path::new("agent.toml")).unwrap_err().to_string();
    let (_, expected) = error.split_once("expected ").unwrap_or_else(|| panic!("{error}"));
    expected.split('`').skip(1).step_by(2).map(|name| format!("{prefix}{name}")).collect()
}

/// The sources of the agent and of the tests, each without the breaks that a long text in them has.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![workspace().join("agent/src"), workspace().join("tests")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), joined(&std::fs::read_to_string(&path).unwrap())));
            }
        }
    }
    found
}

/// A backslash at the end of a line goes on at the next line's first letter.
fn joined(source: &str) -> String {
    let mut parts = source.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start())
}

#[test]
fn the_documents_configurations_are_read() {
    let mut count = 0;
    for document in DOCUMENTS {
        for block in blocks(&read(document), "toml") {
            parse(&block);
            count += 1;
        }
    }
    assert!(count >= 3, "{count} blocks");
}

#[test]
fn the_template_configuration_is_read_as_it_is_and_with_every_key() {
    let minimal = read("templates/agent.toml");
    assert_eq!(keys(&minimal).into_keys().collect::<Vec<_>>(), ["issuer.ca_arn", "trust.secret_id"]);
    parse(&minimal);
    parse(&template(true));
}

#[test]
fn what_the_template_configuration_calls_a_default_is_one() {
    let (minimal, defaults) = (parse(&read("templates/agent.toml")), parse(&template(false)));
    assert_eq!(format!("{defaults:?}"), format!("{minimal:?}"));
}

#[test]
fn the_readme_lists_exactly_the_keys_that_there_are_with_their_defaults() {
    let readme = read("README.md");
    let table = rows(section(&readme, "## Configure"));
    let listed: BTreeMap<&str, &str> = table.iter().map(|row| (row[0].trim_matches('`'), row[1])).collect();
    let tables = known("");
    let mut expected: BTreeSet<String> = tables.iter().flat_map(|table| known(table)).collect();
    expected.extend(known("nats.jetstream"));
    assert_eq!(listed.keys().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>(), expected);

    let required = keys(&read("templates/agent.toml"));
    let defaults = keys(&template(false)).into_iter().filter(|(key, _)| !required.contains_key(key));
    for (key, value) in defaults {
        assert_eq!(listed[key.as_str()], format!("`{value}`"), "{key}");
    }
    // And no key that isn't in the template, or isn't a default there, has one in the README.
    let all = keys(&template(true));
    let off_aws = ["issuer.directory", "trust.file", "discovery.peers"];
    let table = ["nats.jetstream", "nats.jetstream.max_mem", "nats.jetstream.max_file"];
    for key in listed.keys() {
        assert!(all.contains_key(*key) || off_aws.contains(key) || table.contains(key), "{key} is in no template");
    }
}

#[test]
fn the_documents_command_lines_are_the_agents() {
    let mut count = 0;
    for document in DOCUMENTS {
        for block in blocks(&read(document), "sh") {
            for line in block.lines() {
                let line = line.split(" #").next().unwrap_or_default();
                let words = line.split_whitespace().skip_while(|word| *word != "agent");
                if words.clone().next().is_none() || line.starts_with("install") {
                    continue;
                }
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{document}: {line}: {}", parsed.unwrap_err());
                count += 1;
            }
        }
    }
    assert!(count >= 8, "{count} command lines");
    for command in quoted(&read("README.md")).into_iter().filter(|text| text.starts_with("agent ")) {
        let words = command.replace("SHELL", "bash");
        let help = Cli::try_parse_from(words.split_whitespace());
        let shown = help.is_err_and(|error| error.kind() != clap::error::ErrorKind::DisplayHelp);
        assert!(!shown, "{command}");
    }
}

#[test]
fn the_readme_names_every_loss() {
    let readme = read("README.md");
    let named: BTreeSet<&str> = quoted(section(&readme, "### Changes that take something away")).into_iter().collect();
    for name in <LossName as clap::ValueEnum>::value_variants() {
        let name = clap::ValueEnum::to_possible_value(name).unwrap();
        assert!(named.contains(name.get_name()), "{}", name.get_name());
    }
}

/// The README's own sample of a status is served, so that it is one.
#[tokio::test]
async fn the_readme_lists_exactly_the_metrics_that_are_served() {
    let readme = read("README.md");
    let sample = blocks(section(&readme, "### Status"), "json").remove(0);
    let status: Status = serde_json::from_str(&sample).unwrap();
    let again: serde_json::Value = serde_json::to_value(&status).unwrap();
    assert_eq!(again, serde_json::from_str::<serde_json::Value>(&sample).unwrap());

    let listener = metrics::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_sender, watched) = tokio::sync::watch::channel(Some(status));
    let serving = tokio::spawn(metrics::serve(listener, watched));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    serving.abort();

    let types = answer.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served: BTreeSet<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    let table = rows(section(&readme, "### Metrics"));
    let listed: BTreeSet<&str> = table.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(listed, served);
    for document in DOCUMENTS {
        for name in quoted(&read(document)).into_iter().filter(|text| text.starts_with("nats_tls_agent_")) {
            let name = name.split(['{', ' ']).next().unwrap_or_default();
            assert!(served.contains(name), "{document}: {name}");
        }
    }
}

#[test]
fn the_documents_json_is_json() {
    let mut count = 0;
    for document in DOCUMENTS {
        for block in blocks(&read(document), "json") {
            serde_json::from_str::<serde_json::Value>(&block).unwrap_or_else(|error| panic!("{error}\n{block}"));
            count += 1;
        }
    }
    assert!(count >= 1, "{count} blocks");
}

/// The policy allows the calls that the code makes, under the names that it gives them.
#[test]
fn the_readme_lists_exactly_the_permissions_that_the_code_needs() {
    let readme = read("README.md");
    let table = rows(section(&readme, "### Permissions"));
    let listed: BTreeSet<&str> = table.iter().map(|row| row[0].trim_matches('`')).collect();
    let services = ["acm-pca:", "secretsmanager:", "autoscaling:", "ec2:"];
    let sources = sources();
    let code = sources.iter().filter(|(path, _)| path.starts_with(workspace().join("agent/src")));
    let constants = code.flat_map(|(_, text)| text.lines()).filter_map(|line| {
        let (_, value) = line.trim().strip_prefix("const ")?.split_once(": &str = \"")?;
        value.strip_suffix("\";")
    });
    let mut called: BTreeSet<&str> =
        constants.filter(|value| services.iter().any(|service| value.starts_with(service))).collect();
    // Secrets Manager asks KMS on the caller's behalf.
    called.insert("kms:Decrypt");
    assert_eq!(listed, called);
}

/// The functions in a source that are tests: between one's name and what stands before it is an attribute that says so.
fn tests_of(source: &str) -> Vec<&str> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in source.lines().map(str::trim) {
        if let Some(name) =
            line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next())
        {
            found.extend(is_test.then_some(name));
            is_test = false;
        } else if line == "#[test]" || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.is_empty() || line.ends_with(['{', '}', ';']) {
            is_test = false;
        }
    }
    found
}

#[test]
fn every_test_that_a_promise_names_is_there_and_what_is_not_yet_shown_is_said_so() {
    let readme = read("README.md");
    let promises = rows(section(&readme, "## Promises"));
    let numbers: Vec<String> = promises.iter().map(|row| row[0].to_owned()).collect();
    assert_eq!(numbers, (1..=14).map(|number: u32| number.to_string()).collect::<Vec<_>>());

    let sources = sources();
    let tests: BTreeSet<&str> = sources.iter().flat_map(|(_, text)| tests_of(text)).collect();
    for row in &promises {
        let named: Vec<&str> = row[2].split('`').skip(1).step_by(2).collect();
        for name in &named {
            assert!(tests.contains(name), "promise {}: there is no test {name}", row[0]);
        }
        assert!(!named.is_empty() || row[2] == "not yet", "promise {}: name a test, or say \"not yet\"", row[0]);
        if row[2] == "not yet" {
            let number = format!("{:0>2}", row[0]);
            let there =
                tests.iter().find(|name| name.starts_with("invariant_") && numbers_of(name).contains(&&*number));
            assert_eq!(there, None, "promise {} is shown by a test now; name it", row[0]);
        }
    }
}

/// Whoever adds a test of a promise has to tell of it, and a function that is called like one and never run is found.
#[test]
fn every_test_of_an_invariant_is_named_by_a_promise_or_one_of_the_others_of_its_number() {
    let readme = read("README.md");
    let promises = rows(section(&readme, "## Promises"));
    let named: BTreeSet<&str> = promises.iter().flat_map(|row| row[2].split('`').skip(1).step_by(2)).collect();
    let open = promises.iter().filter(|row| row[2].ends_with("and others of that number"));
    let open: Vec<String> = open.map(|row| format!("{:0>2}", row[0])).collect();
    let mut count = 0;
    for (path, text) in sources() {
        let tests = tests_of(&text);
        let functions = text.lines().filter_map(|line| line.trim().trim_start_matches("async ").strip_prefix("fn "));
        for name in functions.filter_map(|rest| rest.split('(').next()).filter(|name| name.starts_with("invariant_")) {
            assert!(tests.contains(&name), "{}: {name} is called like a test and is none", path.display());
            let is_one_of_others = numbers_of(name).iter().any(|number| open.iter().any(|open| open == number));
            assert!(named.contains(name) || is_one_of_others, "{}: no promise names {name}", path.display());
            count += 1;
        }
    }
    assert!(count > 100, "{count} tests of invariants");
}

/// `invariant_02_and_11_…` is of 02 and 11.
fn numbers_of(test: &str) -> Vec<&str> {
    let parts = test.split('_').skip(1);
    parts
        .take_while(|part| *part == "and" || part.bytes().all(|b| b.is_ascii_digit()))
        .filter(|part| *part != "and")
        .collect()
}

/// A heading or a table's first cell in the runbook quotes a message: what stands between its gaps is in the sources.
#[test]
fn the_runbook_quotes_messages_that_there_are() {
    let runbook = read("docs/runbook.md");
    let agent = workspace().join("agent/src");
    let code: Vec<String> =
        sources().into_iter().filter(|(path, _)| path.starts_with(&agent)).map(|(_, text)| text).collect();
    let mut count = 0;
    for heading in runbook.lines().filter_map(|line| line.strip_prefix("### ")) {
        for quote in heading.split('`').skip(1).step_by(2) {
            for fragment in quote.split('…').map(str::trim).filter(|fragment| fragment.len() > 2) {
                let fragment = fragment.trim_end_matches(" on").trim_end_matches(':');
                assert!(code.iter().any(|text| text.contains(fragment)), "no source has {fragment:?} of {heading:?}");
                count += 1;
            }
        }
    }
    assert!(count > 40, "{count} fragments");
}

/// The names under which a document's headings are linked to.
fn anchors(markdown: &str) -> BTreeSet<String> {
    markdown.lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

#[test]
fn the_documents_links_lead_somewhere() {
    for document in DOCUMENTS {
        let text = read(document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, fragment) = link.split_once('#').map_or((link, None), |(file, name)| (file, Some(name)));
            let path = workspace().join(document).parent().unwrap().join(file);
            let anchors = match file {
                "" => anchors(&text),
                _ if fragment.is_some() => anchors(&std::fs::read_to_string(&path).unwrap()),
                _ => BTreeSet::new(),
            };
            assert!(path.exists() && fragment.is_none_or(|name| anchors.contains(name)), "{document}: {link}");
        }
    }
}

/// As GitHub makes an anchor of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
