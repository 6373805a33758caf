//! The documents agree with the code: keys, defaults, command lines, metrics, permissions, messages, tests and links.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use harness::markdown::{self, blocks};
use harness::tools::workspace;
use nats_tls_agent::aws::AwsSettings;
use nats_tls_agent::cli::Cli;
use nats_tls_agent::client::check::Fault;
use nats_tls_agent::conf::loss::Loss;
use nats_tls_agent::config::client::ClientConfig;
use nats_tls_agent::config::{Config, IssuerKind};
use nats_tls_agent::daemon::metrics;
use nats_tls_agent::daemon::published::Published;
use nats_tls_agent::daemon::tally::Tally;
use nats_tls_agent::exposition;
use nats_tls_agent::issue::Issuer as _;
use nats_tls_agent::issue::acm_pca::AcmPca;
use nats_tls_agent::reason::{Code, Reason, Told};
use nats_tls_agent::reconcile::{Pass, PassError, Source};
use nats_tls_agent::status::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The environment variable that makes a test write the generated table anew. Without the variable the test compares.
const UPDATE: &str = "UPDATE_DOCS";
/// A newcomer reads a README of this length in one go.
const MOST_LINES_OF_README: usize = 250;

/// Every document of the repository, by its path in the repository.
fn documents() -> Vec<String> {
    let built = ["target", ".git"];
    let mut found = Vec::new();
    let mut directories = vec![workspace()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.extend((!built.iter().any(|name| path.ends_with(name))).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(workspace()).unwrap().display().to_string());
            }
        }
    }
    found.sort_unstable();
    found
}

fn read(file: &str) -> String {
    let path = workspace().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text under a heading, up to the next heading of the same level or above.
fn section<'a>(markdown: &'a str, heading: &str) -> &'a str {
    markdown::section(markdown, heading).unwrap_or_else(|| panic!("there is no {heading:?}"))
}

/// The cells of a table's rows, without the table's head.
fn rows(markdown: &str) -> Vec<Vec<&str>> {
    let table = markdown.lines().filter(|line| line.starts_with('|')).skip_while(|line| !line.starts_with("| ---"));
    table.skip(1).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The lines outside code blocks.
fn prose(markdown: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    markdown.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !fence && !inside
    })
}

/// The texts between backticks, outside code blocks.
fn quoted(markdown: &str) -> Vec<&str> {
    prose(markdown).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("agent.toml")).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Each leaf of a TOML text, by the leaf's dotted key.
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

/// `templates/agent.toml` with the keys from its comments enabled: all keys, or only the keys with a default value.
fn template(examples_too: bool) -> String {
    let is_key = |line: &str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase());
    let enable = |line: &str| match line.strip_prefix('#') {
        Some(key) if is_key(line) && (examples_too || !line.ends_with("# an example")) => key.to_owned(),
        _ => line.to_owned(),
    };
    read("templates/agent.toml").lines().map(enable).collect::<Vec<_>>().join("\n")
}

/// The keys that a table of the configuration knows. The error about an unknown key lists the known keys.
fn known(table: &str) -> BTreeSet<String> {
    let (text, prefix) = match table {
        "" => ("zzz = 1".to_owned(), String::new()),
        _ => (format!("[{table}]\nzzz = 1"), format!("{table}.")),
    };
    let error = Config::parse(&text, Path::new("agent.toml")).unwrap_err().to_string();
    let (_, expected) = error.split_once("expected ").unwrap_or_else(|| panic!("{error}"));
    expected.split('`').skip(1).step_by(2).map(|name| format!("{prefix}{name}")).collect()
}

/// The sources of the agent and of the tests. Each source has its long strings joined to single lines.
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

/// Joins lines: a string with a backslash at the end of a line continues at the next line's first letter.
fn joined(source: &str) -> String {
    let mut parts = source.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start())
}

#[test]
fn the_documents_configurations_are_read() {
    let mut count = 0;
    for document in documents() {
        for block in blocks(&read(&document), "toml") {
            if block.starts_with("# client.toml\n") {
                ClientConfig::parse(&block, Path::new("client.toml")).unwrap();
            } else {
                parse(&block);
            }
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
fn the_documents_list_exactly_the_keys_that_there_are_with_their_defaults() {
    let document = read("docs/configuration.md");
    let table = rows(section(&document, "## Keys"));
    let listed: BTreeMap<&str, &str> = table.iter().map(|row| (row[0].trim_matches('`'), row[1])).collect();
    let tables = known("");
    let mut expected: BTreeSet<String> = tables.iter().flat_map(|table| known(table)).collect();
    expected.extend(known("nats.jetstream"));
    expected.extend(known("nats.system"));
    expected.remove("nats.reload");
    expected.extend(known("nats.reload"));
    expected.remove("trust.clients");
    expected.extend(known("trust.clients"));
    assert_eq!(listed.keys().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>(), expected);

    let required = keys(&read("templates/agent.toml"));
    let defaults = keys(&template(false)).into_iter().filter(|(key, _)| !required.contains_key(key));
    for (key, value) in defaults {
        assert_eq!(listed[key.as_str()], format!("`{value}`"), "{key}");
    }
    // The template has every key except the keys that no EC2 instance needs.
    let all = keys(&template(true));
    let off_aws = ["issuer.directory", "trust.file", "trust.clients.file", "discovery.peers"];
    let jetstream = ["nats.jetstream", "nats.jetstream.max_mem", "nats.jetstream.max_file"];
    let table = [&jetstream[..], &["nats.settings", "nats.system.creds_file", "nats.system.secret_id"]].concat();
    for key in listed.keys() {
        assert!(all.contains_key(*key) || off_aws.contains(key) || table.contains(key), "{key} is in no template");
    }
}

/// The keys of client.toml are those that its parser knows, in the document and in the template. The error about an unknown key
/// lists the known keys.
#[test]
fn the_documents_list_exactly_the_keys_of_a_client() {
    let parse = |text: &str| ClientConfig::parse(text, Path::new("client.toml"));
    let known = |table: &str| {
        let error = parse(&format!("[{table}]\nzzz = 1")).unwrap_err().to_string();
        let (_, expected) = error.split_once("expected ").unwrap_or_else(|| panic!("{error}"));
        expected.split('`').skip(1).step_by(2).map(|name| format!("{table}.{name}")).collect::<Vec<_>>()
    };
    let expected: BTreeSet<_> = ["connection", "client", "client.on_change", "client.certificate", "login", "metrics"]
        .into_iter()
        .flat_map(known)
        .collect();
    let document = read("docs/clients.md");
    let table = rows(section(&document, "## Keys of client.toml"));
    let listed: BTreeSet<_> = table.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(listed, expected);
    let template = read("templates/client.toml");
    parse(&template).unwrap();
    for key in &expected {
        let name = key.rsplit('.').next().unwrap();
        let is_there = template.contains(&format!("{name} = ")) || template.contains(&format!("[{key}]"));
        assert!(is_there || key.starts_with("client.on_change."), "{key} is in no template");
    }
}

#[test]
fn the_documents_list_exactly_the_faults_of_a_check() {
    let document = read("docs/clients.md");
    let (_, table) = section(&document, "## Check").split_once("The codes:").unwrap();
    let listed: Vec<_> = rows(table).iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(listed, Fault::ALL.iter().map(|fault| fault.code()).collect::<Vec<_>>());
}

#[test]
fn the_readme_has_the_keys_that_matter_as_the_table_of_all_keys_has_them() {
    let (readme, document) = (read("README.md"), read("docs/configuration.md"));
    let all = rows(section(&document, "## Keys"));
    let all: BTreeMap<&str, &str> = all.iter().map(|row| (row[0], row[1])).collect();
    let matter = rows(section(&readme, "## The keys that matter"));
    for row in &matter {
        assert_eq!(all.get(row[0]), Some(&row[1]), "{}", row[0]);
    }
    assert!((10..=14).contains(&matter.len()), "{} keys are not a dozen", matter.len());
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= MOST_LINES_OF_README, "{lines} lines; move the text to docs/");
}

#[test]
fn the_documents_command_lines_are_the_agents() {
    let mut count = 0;
    for document in documents() {
        for block in blocks(&read(&document), "sh") {
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
    let mut count = 0;
    for document in documents() {
        for command in quoted(&read(&document)).into_iter().filter(|text| text.starts_with("agent ")) {
            let words = command.replace("SHELL", "bash").replace("SHA256", &"0".repeat(64));
            let help = Cli::try_parse_from(words.split_whitespace());
            let shown = help.is_err_and(|error| error.kind() != clap::error::ErrorKind::DisplayHelp);
            assert!(!shown, "{document}: {command}");
            count += 1;
        }
    }
    assert!(count >= 40, "{count} commands in the prose");
}

#[test]
fn the_documents_name_every_loss() {
    let document = read("docs/operations.md");
    let named: BTreeSet<&str> = quoted(section(&document, "## Changes that take something away")).into_iter().collect();
    for name in <Loss as clap::ValueEnum>::value_variants() {
        let name = clap::ValueEnum::to_possible_value(name).unwrap();
        assert!(named.contains(name.get_name()), "{}", name.get_name());
    }
}

/// The test serves the document's own sample of a status, with a reason, a warning, a source and a call that fails. The
/// sample must be a valid status.
#[tokio::test]
async fn the_documents_list_exactly_the_metrics_that_are_served() {
    let document = read("docs/operations.md");
    let sample = blocks(section(&document, "## Status"), "json").remove(0);
    let mut status: Status = serde_json::from_str(&sample).unwrap();
    let again: serde_json::Value = serde_json::to_value(&status).unwrap();
    assert_eq!(again, serde_json::from_str::<serde_json::Value>(&sample).unwrap());

    let listener = exposition::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    status.reasons.push(Told::from(&Reason::NoCertificate));
    status.warnings.push(Told::from(&Reason::NoRoute));
    let tally = Arc::new(Tally::default());
    let (now, outcome) = (time::OffsetDateTime::UNIX_EPOCH, Err(PassError::Waits(Reason::NoRoute)));
    let answered = vec![(Source::Peers, now)];
    tally.note(&Pass { status: status.clone(), outcome, next: now, issuance: None, answered }, Duration::ZERO);
    let nobody = AwsSettings { endpoint: Some("http://127.0.0.1:1".into()), ..AwsSettings::from_environment() };
    let ca = parse(&read("templates/agent.toml")).issuer.kind;
    let IssuerKind::AcmPca { ca_arn, template_arn } = ca else { panic!("{ca:?}") };
    AcmPca::new(&nobody.load().await, ca_arn, template_arn).ca_pem().await.unwrap_err();
    let published = Published { status: Some(status), pass: None, last_pass: Some(now) };
    let (_sender, watched) = tokio::sync::watch::channel(published);
    let serving = tokio::spawn(metrics::serve(listener, watched, tally));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    serving.abort();

    let types = answer.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served: BTreeSet<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    let table = rows(section(&document, "## Metrics"));
    let listed: BTreeSet<&str> = table.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(listed, served);
    for document in documents() {
        for name in quoted(&read(&document)).into_iter().filter(|text| text.starts_with("nats_tls_agent_")) {
            let name = name.split(['{', ' ']).next().unwrap_or_default();
            assert!(served.contains(name), "{document}: {name}");
        }
    }
}

#[test]
fn the_documents_json_is_json() {
    let mut count = 0;
    for document in documents() {
        for block in blocks(&read(&document), "json") {
            serde_json::from_str::<serde_json::Value>(&block).unwrap_or_else(|error| panic!("{error}\n{block}"));
            count += 1;
        }
    }
    assert!(count >= 1, "{count} blocks");
}

/// The policy allows the calls that the code makes. The code's constants name the calls.
#[test]
fn the_documents_list_exactly_the_permissions_that_the_code_needs() {
    let document = read("docs/install.md");
    let table = rows(section(&document, "## Permissions"));
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
    called.extend(["kms:Decrypt", "kms:GenerateDataKey"]);
    assert_eq!(listed, called);
}

/// The functions in a source that are tests. A test's attribute stands between the preceding code and the test's name.
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

/// The tier of a source's tests: `unit` beside the agent's code, else the directory below `tests`.
fn tier(source: &Path) -> String {
    let parts: Vec<_> = source.strip_prefix(workspace()).unwrap().iter().map(|part| part.to_str().unwrap()).collect();
    if parts[0] == "agent" { "unit".to_owned() } else { parts[1].to_owned() }
}

/// Every test of an invariant: the invariant's number, the test's name, the test's tier.
fn tests_of_invariants() -> BTreeSet<(u32, String, String)> {
    let mut found = BTreeSet::new();
    for (path, text) in sources() {
        for name in tests_of(&text).into_iter().filter(|name| name.starts_with("invariant_")) {
            let numbers = numbers_of(name);
            assert!(!numbers.is_empty(), "{}: {name} has no number", path.display());
            found.extend(numbers.iter().map(|number| (number.parse().unwrap(), name.to_owned(), tier(&path))));
        }
    }
    found
}

/// The invariants of the document, by number. Each invariant has the text under its heading.
fn invariants(document: &str) -> BTreeMap<u32, &str> {
    let headings = document.lines().filter(|line| line.starts_with("### "));
    let numbered = headings.map(|heading| {
        let number = heading[4..].split('.').next().unwrap_or_default();
        (number.parse().unwrap_or_else(|_| panic!("{heading:?} has no number")), section(document, heading))
    });
    numbered.collect()
}

#[test]
fn every_invariant_has_a_test_and_every_test_that_one_names_is_there() {
    let document = read("docs/invariants.md");
    let invariants = invariants(&document);
    assert_eq!(invariants.keys().copied().collect::<Vec<_>>(), (1..=14).collect::<Vec<_>>());

    let numbered = tests_of_invariants();
    let sources = sources();
    let tests: BTreeSet<&str> = sources.iter().flat_map(|(_, text)| tests_of(text)).collect();
    for (number, text) in invariants {
        let also = text.split_once("Also shown by").map(|(_, names)| names.split('.').next().unwrap_or_default());
        for name in also.map(quoted).unwrap_or_default() {
            assert!(tests.contains(name), "invariant {number}: there is no test {name}");
        }
        let is_shown = numbered.iter().any(|(of, ..)| *of == number);
        let is_open = text.contains("No test shows it yet.");
        assert!(is_shown != is_open, "invariant {number}: write a test, or say \"No test shows it yet.\"; not both");
    }
}

/// The check works both ways: a test that is added, removed or renamed changes the table. [`UPDATE`] writes the table.
#[test]
fn the_table_of_the_invariants_tests_is_that_of_the_sources() {
    const FILE: &str = "docs/invariants.md";
    const BEGIN: &str = "<!-- generated: begin -->\n";
    const END: &str = "<!-- generated: end -->\n";
    let tests = tests_of_invariants();
    assert!(tests.len() > 100, "{} tests of invariants", tests.len());
    let mut table = "| invariant | test | tier |\n| --- | --- | --- |\n".to_owned();
    table.extend(tests.iter().map(|(number, name, tier)| format!("| {number} | `{name}` | {tier} |\n")));

    let document = read(FILE);
    let (before, rest) = document.split_once(BEGIN).unwrap_or_else(|| panic!("{FILE} has no {BEGIN:?}"));
    let (kept, after) = rest.split_once(END).unwrap_or_else(|| panic!("{FILE} has no {END:?}"));
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(workspace().join(FILE), [before, BEGIN, &table, END, after].concat()).unwrap();
        return;
    }
    let (kept, made): (BTreeSet<&str>, BTreeSet<&str>) = (kept.lines().collect(), table.lines().collect());
    let (gone, new): (Vec<_>, Vec<_>) = (kept.difference(&made).collect(), made.difference(&kept).collect());
    assert!(
        gone.is_empty() && new.is_empty(),
        "{FILE} differs from the sources; run with {UPDATE}=1. No longer there: {gone:#?}. Not in the table: {new:#?}"
    );
    assert_eq!(rest.split_once(END).unwrap().0, table, "the rows of {FILE} are in another order; run with {UPDATE}=1");
}

/// A function with the name of an invariant's test must be a test. Otherwise it never runs.
#[test]
fn what_is_called_like_a_test_of_an_invariant_is_one() {
    let mut count = 0;
    for (path, text) in sources() {
        let tests = tests_of(&text);
        let functions = text.lines().filter_map(|line| line.trim().trim_start_matches("async ").strip_prefix("fn "));
        for name in functions.filter_map(|rest| rest.split('(').next()).filter(|name| name.starts_with("invariant_")) {
            assert!(tests.contains(&name), "{}: {name} has a test's name, but is not a test", path.display());
            count += 1;
        }
    }
    assert!(count > 100, "{count} tests of invariants");
}

#[test]
fn an_invariant_has_that_one_name_in_the_documents() {
    for document in documents() {
        let text = read(&document).to_lowercase();
        let mut words = text.split(|character: char| !character.is_alphabetic());
        assert!(!words.any(|word| word.starts_with("promise")), "{document} says \"promise\"");
    }
}

/// The numbers in a test's name: `invariant_02_and_11_…` tests invariants 02 and 11.
fn numbers_of(test: &str) -> Vec<&str> {
    let parts = test.split('_').skip(1);
    parts
        .take_while(|part| *part == "and" || part.bytes().all(|b| b.is_ascii_digit()))
        .filter(|part| *part != "and")
        .collect()
}

/// The codes in the runbook's headings: names between backticks that are spelled like a code.
fn codes_in_headings(runbook: &str) -> BTreeSet<&str> {
    let headings = runbook.lines().filter(|line| line.starts_with("### "));
    let quotes = headings.flat_map(|heading| heading.split('`').skip(1).step_by(2));
    let is_code =
        |quote: &&str| quote.contains('_') && quote.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    quotes.filter(is_code).collect()
}

#[test]
fn the_runbooks_headings_carry_every_code_of_a_reason_and_no_other() {
    let runbook = read("docs/runbook.md");
    let codes: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    let found = codes_in_headings(&runbook);
    let missing: Vec<_> = codes.difference(&found).collect();
    let unknown: Vec<_> = found.difference(&codes).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "no heading has {missing:?}; no reason has {unknown:?}");
}

/// A heading in the runbook quotes a message. The sources contain the text between the quote's gaps.
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

/// The anchors of a document's headings, which links name.
fn anchors(markdown: &str) -> BTreeSet<String> {
    prose(markdown).filter(|line| line.starts_with('#')).map(anchor).collect()
}

#[test]
fn the_documents_links_lead_somewhere() {
    let mut count = 0;
    for document in documents() {
        let text = read(&document);
        let prose = prose(&text).collect::<Vec<_>>().join("\n");
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, fragment) = link.split_once('#').map_or((link, None), |(file, name)| (file, Some(name)));
            let path = workspace().join(&document).parent().unwrap().join(file);
            let anchors = match file {
                "" => anchors(&text),
                _ if fragment.is_some() => anchors(&std::fs::read_to_string(&path).unwrap_or_default()),
                _ => BTreeSet::new(),
            };
            assert!(path.exists() && fragment.is_none_or(|name| anchors.contains(name)), "{document}: {link}");
            count += 1;
        }
    }
    assert!(count > 100, "{count} links");
}

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
