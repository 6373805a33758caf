//! The reader of nats-server's language against `nats-server -t`, whose digest says what it has read.
//!
//! Where the reader gives a tree, nats-server prints exactly the digest of that tree. The reader may refuse what
//! nats-server accepts, and accepts nothing that nats-server refuses.
//!
//! `CONF_READER_SEED` and `CONF_READER_RANDOM` set the seed and the number of random texts of each kind.
//! `NATS_CONF_CORPUS` names a directory of files to compare as well, and `CONF_READER_MUTATIONS` the number of mutations
//! of them. `CONF_READER_SHOW` prints the texts that the reader alone refuses. `CONF_READER_VERSIONS` names other versions
//! than the pinned ones.

#![allow(clippy::print_stdout, reason = "the counts are a result of the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::tools;
use nats_tls_agent::conf::digest::{UsedVariables, digest};
use nats_tls_agent::conf::effective::Sources;
use nats_tls_agent::conf::environment::Environment;
use nats_tls_agent::conf::reader::{Fault, read, utf8};
use nats_tls_agent::conf::tree::Source;

/// The pinned versions that print a digest.
const VERSIONS: &str = "2.12.8 2.15.1";
/// Files that the texts include.
const FILES: [(&str, &str); 6] = [
    ("one.conf", "from_one: 1\ntls { from_one: true }\n"),
    ("two.conf", "include one.conf\nV: two\nuses: $V; list [ a, $V ]"),
    ("empty.conf", "# nothing\n"),
    ("broken.conf", "a { b: 1\n"),
    ("latin1.conf", "PLACEHOLDER"),
    ("alone.conf", "a: $PARENT\n"),
];
const VARIABLES: [(&str, &str); 14] = [
    ("NUMBER", "22"),
    ("SIZE", "10MB"),
    ("BOOL", "on"),
    ("QUOTED", "'3xyz'"),
    ("MAP", "{a: 1, b: $a, c: [ x ]}"),
    ("ARRAY", "[1 ,2 ]"),
    ("EMPTY", ""),
    ("HASH", "#x"),
    ("SEMICOLON", "a;b=c"),
    ("LINES", "a\npk=b"),
    ("BLANK", "a b"),
    ("OTHER", "$NUMBER"),
    ("LOOP", "$LOOP"),
    ("PASSWORD", "s3cr3t!"),
];

/// A version's answer: the digest, or `None` where it refuses.
type Answer = Option<String>;

#[derive(Default, Debug)]
struct Counts {
    equal: usize,
    refused_by_both: usize,
    refused_by_us: BTreeMap<String, usize>,
    /// All texts that the reader refuses, with the faults.
    refused: Vec<String>,
    /// The texts that the reader alone refuses, with the faults.
    alone: BTreeSet<String>,
    /// What must not be, with the text.
    wrong: Vec<String>,
}

impl Counts {
    fn said(&self) -> String {
        let ours: usize = self.refused_by_us.values().sum();
        format!(
            "equal {}, refused by both {}, refused by the reader alone {ours} {:?}, wrong {}",
            self.equal,
            self.refused_by_both,
            self.refused_by_us,
            self.wrong.len()
        )
    }
}

fn environment() -> Environment {
    let process = VARIABLES.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Environment::new(process, None).unwrap()
}

/// A version and its nats-server.
type Binary = (String, PathBuf);

fn binaries() -> Vec<Binary> {
    let versions = std::env::var("CONF_READER_VERSIONS").unwrap_or_else(|_| VERSIONS.to_owned());
    versions.split(' ').map(|version| (version.to_owned(), tools::nats_server(version).unwrap())).collect()
}

/// The reader's digest of the wrapped text, or the kind of the fault.
fn ours(text: &[u8], directory: &Path, environment: &Environment) -> Result<String, String> {
    let source = Arc::new(Source::File(directory.join("FILE")));
    let name = |file: &Path| Source::File(file.to_owned());
    let read = utf8(text, &source).and_then(|text| read(text, Arc::clone(&source), directory, environment, &name));
    match read {
        Ok(read) => Ok(digest(&Sources::wrapped_tree(read.map), UsedVariables::Keep)),
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            Err(kind(&error.fault))
        }
    }
}

fn kind(fault: &Fault) -> String {
    let debug = match fault {
        Fault::Environment { fault, .. } => return format!("Environment/{}", kind(fault)),
        other => format!("{other:?}"),
    };
    debug.chars().take_while(char::is_ascii_alphanumeric).collect()
}

fn theirs(binary: &Path, directory: &Path, file: &str) -> Answer {
    let output = Command::new(binary)
        .args(["-t", "-c", file])
        .current_dir(directory)
        .env_clear()
        .envs(VARIABLES)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    let digest = said.split_once("(sha256:").and_then(|(_, rest)| rest.split_once(')'));
    digest.filter(|_| output.status.success()).map(|(digest, _)| format!("sha256:{digest}"))
}

/// A text, in a directory of its own with the files that it includes, or the file that it is.
struct Case {
    text: Vec<u8>,
    file: Option<PathBuf>,
}

fn lay_out(directory: &Path, case: &Case) {
    std::fs::create_dir_all(directory.join("sub")).unwrap();
    for (name, text) in FILES {
        std::fs::write(directory.join(name), text).unwrap();
    }
    std::fs::write(directory.join("latin1.conf"), b"a: 1\nb: \xe9\n").unwrap();
    std::fs::write(directory.join("sub/three.conf"), "include ../one.conf\nthree: yes\n").unwrap();
    std::fs::write(directory.join("FILE"), &case.text).unwrap();
    // nats-server takes every path for a relative path.
    let path = case.file.as_ref().map(|file| format!("{}{}", "../".repeat(30), file.display()));
    std::fs::write(directory.join("wrapper"), Sources::wrapped(path.as_deref().unwrap_or("FILE"))).unwrap();
}

/// Compares all texts on all versions, with as many processes at once as there are processors, and one more.
fn compare(cases: &[Case]) -> Counts {
    let binaries = binaries();
    let environment = environment();
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from) + 1;
    let mut counts = Counts::default();
    std::thread::scope(|scope| {
        let work = || {
            let directory = tempfile::tempdir().unwrap();
            let mut counts = Counts::default();
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                lay_out(directory.path(), case);
                compare_one(case, directory.path(), &environment, &binaries, &mut counts);
            }
            counts
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let of_one = worker.join().unwrap();
            counts.equal += of_one.equal;
            counts.refused_by_both += of_one.refused_by_both;
            counts.refused.extend(of_one.refused);
            counts.alone.extend(of_one.alone);
            counts.wrong.extend(of_one.wrong);
            for (kind, count) in of_one.refused_by_us {
                *counts.refused_by_us.entry(kind).or_default() += count;
            }
        }
    });
    counts
}

fn compare_one(case: &Case, directory: &Path, environment: &Environment, binaries: &[Binary], counts: &mut Counts) {
    let text = &case.text;
    let ours = ours(text, case.file.as_deref().and_then(Path::parent).unwrap_or(directory), environment);
    if let Err(kind) = &ours {
        counts.refused.push(format!("{kind}: {}", text.escape_ascii()));
    }
    for (version, binary) in binaries {
        // nats-server dies of a file that includes itself, slowly.
        let is_cycle = matches!(&ours, Err(kind) if kind == "IncludeCycle");
        match (&ours, if is_cycle { None } else { theirs(binary, directory, "wrapper") }) {
            (Ok(ours), Some(theirs)) if *ours == theirs => counts.equal += 1,
            (Ok(ours), theirs) => {
                counts.wrong.push(format!("{version}: {ours} and {theirs:?} of {}", text.escape_ascii()));
            }
            (Err(_), None) => counts.refused_by_both += 1,
            (Err(kind), Some(_)) => {
                counts.alone.insert(format!("{kind}: {}", text.escape_ascii()));
                *counts.refused_by_us.entry(kind.clone()).or_default() += 1;
            }
        }
    }
}

/// Compares, prints the counts and fails for what must not be.
fn hold(what: &str, cases: &[Case]) -> Counts {
    let counts = compare(cases);
    let versions: Vec<_> = binaries().into_iter().map(|(version, _)| version).collect();
    println!("{what}: {} texts on {}: {}", cases.len(), versions.join(", "), counts.said());
    if std::env::var_os("CONF_READER_SHOW").is_some() {
        println!("{:#?}", counts.alone);
    }
    assert!(counts.wrong.is_empty(), "{what}: {}", counts.wrong.join("\n"));
    counts
}

fn case(text: impl Into<Vec<u8>>) -> Case {
    Case { text: text.into(), file: None }
}

/// Texts that both read.
const READ: &[&str] = &[
    "",
    "# c",
    "// c\n",
    "a=1",
    "a:1",
    "a 1",
    "a\t:\t1",
    "a\n1",
    "{\"a\":1}",
    "{a:1\n b:2\n}\n",
    "{ a: 1 }\nb: 2",
    "a.b.c=1",
    "k>*=1",
    "$SYS.x: 1",
    "\"a b\" = 1",
    "'a b' {c: 1}",
    "\"include\" x",
    "include: x",
    "a {\n}",
    "a {b 1}\na {c 2}",
    "PORT: 4222\nPort: 4223",
    "a=b#c",
    "a=b //c",
    "a=b # c",
    "a: x;b: y,c: z",
    "a=b//c",
    "a=foo\\tbar",
    "a=tr\\x75e",
    "a=\\x24X",
    "a=\"\\t\\n\\r\\\"\\\\\\x41\\xc3\\xa9\"",
    "a='\\t\\x41'",
    "a=\"x\ny\"",
    "a=TRUE\nb=False\nc=on\nd=OFF\ne=Yes\nf=no\ng=null\nh='true'",
    "a=(\nfoo\n)\n",
    "a=(x\n (y)\n)\nb=1",
    "a [ (\nx\n)\n (\ny\n)\n]",
    "a=007\nb=-0\nc=-5",
    "a=1k\nb=1K;c=2kb,d=3ki\ne=4KiB\nf=5m\ng=6MB\nh=7g",
    "a=8gib",
    "a=1t\nb=1tb\nc=1p\nd=1pib\ne=1e\nf=1eb\ng=-2k",
    "a=9223372036854775807\nb=-9223372036854775808",
    "a=[ 1, 2 ]",
    "a=[\n1\n2\n]",
    "a=[-5]",
    "a=[ 5 ]",
    "a=[x,y,]",
    "a=[]",
    "a=[x\ny # c\n// d\nz]",
    "a=1.5\nb=-1.5\nc=[1.5,2.5]\nd=0.0000001\ne=-0.0\nf=123456789012345678901234567890.0\ng=1.0",
    "a=127.0.0.1:4222",
    "a=[127.0.0.1:1, nats://x:1]",
    "a=-1.2.3",
    "a=1.2.3-4",
    "a=2016-05-04T18:53:41Z",
    "a=[2016-02-29T00:00:00Z]",
    "a=0000-01-01T00:00:00Z",
    "a=5x",
    "a=10s\nb=1h30\nc=5:6\nd=5#x\ne=[5x]\nf=5kx;g=1_000",
    "a=<>&é𝄞\u{fffd}",
    "a=\"<>&\u{2028}\u{2029}\\x01\\x7f\"",
    "\"<é\"=1",
    "a {b {c [ {d: e}, [ f ] ]}}",
    "a {\n b:\n 1\n}",
    "a { b\n 1 }",
    "a {b 1, c 2; d 3\n e 4 # x\n}",
    "A=1\nb=$A\nA=2\nc=$A",
    "A {x 1}\nb $A",
    "v=1\nm {v=2, w=$v}\nx=$v",
    "v=1\nm {w=$v, v=2, x=$v}",
    "A=[ x ]\nb=[$A, $A]",
    "p=$2a$11$abc.def",
    "p=$NUMBER\nq=$SIZE\nr=$BOOL\ns=$QUOTED",
    "p=$MAP\nq=$ARRAY\nr=$EMPTY\ns=$OTHER\nt [$PASSWORD]",
    "NUMBER=1\na=$NUMBER",
    "a=\"$NUMBER\"\nb='$NUMBER'",
    "include one.conf",
    "include 'one.conf'\nb=1",
    "INCLUDE \"one.conf\"; b=1",
    "include two.conf\nuse=$uses",
    "include sub/three.conf",
    "include /one.conf",
    "include x/../one.conf\n",
    "include ./sub/../one.conf",
    "tls {a 1}\ninclude one.conf",
    "include one.conf\ntls {a 1}",
    "a { include one.conf }",
    "a { include one.conf; b 1 }",
    "include empty.conf",
    "a {\r\n b: 1\r\n}\r\n",
    "a:1\r\nb:2\rc:3",
    "a\u{a0}= 1",
    "a [\u{2028}x]",
    "foo {\n # }\n}",
    "a=\u{feff}x",
    "a=x\\x5d",
    "a=x[1\nb=1",
    "a {b=\u{a0}1}",
    "A \u{2028}b",
    "listen: :80\nb=:-1",
    "a=URL(\"x\")",
    "accounts {A {}, B $A}",
    "a: \"\"",
    "a: []\nb: {}",
    "a=5kbx\nb=1kk\nc=1ibk",
    "a=1.2.3.4:5-6..",
    "a=b{c",
    "a=b(c",
    "a [ [ ] , [ ]\n[ ] ]",
];

/// Texts that the reader refuses: errors, and the traps that nats-server accepts.
const REFUSED: &[&str] = &[
    "a=1\0",
    "\0",
    "a=\"\0\"",
    "#\0",
    "\u{feff}a=1",
    "a=\"\\x00\"",
    "a=\"\\xff\"",
    "a=\"\\xc3\"",
    "a{b:1}",
    "a{\nb:1",
    "k#x=1",
    "k//x=1",
    "a=x;;b=1",
    "{a:1},b:2",
    "/foo: 1",
    "a {/foo: 1}",
    "foo { bar }",
    "foo { a = 1kbb }",
    "a=1kbb",
    "a",
    "a=",
    "a:\n1",
    "a=}",
    "a=;",
    "a=,",
    "}",
    "a=1\n}",
    "a=1 }\nb=2",
    "{a:1\n",
    "{{a:1}}",
    "{",
    "a {",
    "a [",
    "[",
    "İnclude one.conf",
    "a=1.2.3.4/\nb=1",
    "a {b=1.2.3.4/8\n}",
    "a / b",
    "a [x / y]",
    "[1]",
    "a=[1,,2]",
    "a {,}",
    "a {b 1,,c 2}",
    "a # c",
    "a = # c",
    "a = // c",
    "a = [\"",
    "a = \"",
    "a = \"x\\t",
    "a = '",
    "\"a",
    "'a",
    "\"\"=5",
    "\"a\\\"b\": 1",
    "a=it's",
    "a=true'",
    "a=$X'",
    "a=x\"y",
    "a=\"\\/\"",
    "a=\"\\u0041\"",
    "a=\"\\x4\"",
    "a=\\q",
    "a=(\nfoo\n)",
    "a=(\nfoo\n)\r\n",
    "a=(\nfoo\n )\n)\n",
    "a=()\n",
    "a=(\nfoo",
    "a=9223372036854775808",
    "a=1 2",
    "a=9223372036854775807k",
    "a=20e",
    "a=8EiB",
    "a=-9223372036854775809",
    "a=[1, 2]",
    "a=[5k]",
    "a=5]",
    "a=5\"abc",
    "a=[5']",
    "a=5\\t",
    "a=-5abc",
    "a=-",
    "a=-x",
    "a=1.5e3",
    "a=.5",
    "a=5.",
    "a=1.5s",
    "a=1.2.3.4x",
    "a=2016-05-04",
    "a=1-2",
    "a=2015-02-29T00:00:00Z",
    "a=2016-01-01T00:00:60Z",
    "a=2016-13-01T00:00:00Z",
    "a=2016-01-01T24:00:00Z",
    "a=2016-01-01T00:00:00+01:00",
    "a=٣",
    "a=٣x",
    "a=5٣",
    "a=1٣k",
    "a=-٣",
    "a=1k5",
    "a=1e5",
    "a=-1e5",
    "a=3k4x",
    "a=1.٣",
    "a=$UNDEFINED",
    "a=$",
    "a=${NUMBER}",
    "a=$2b$11$abc",
    "a=$LOOP",
    "a=$HASH",
    "a=$SEMICOLON",
    "a=$LINES",
    "a=$BLANK",
    "m {v=1}\na=$v",
    "a=$a",
    "b {a=$b}",
    "port=1\nmonitor_port=$port",
    "mappings {a b, c $a}",
    "A {v 1, w $v}\nb [$A]",
    "include missing.conf",
    "include broken.conf",
    "include latin1.conf",
    "include *.conf",
    "include alone.conf",
    "PARENT=1\ninclude alone.conf",
    "include $NUMBER",
    "include one.conf, b=1",
    "include",
    "include ",
    "include \n",
    "include {}",
    "include sub",
    "a [include one.conf]",
    "a=\u{b}x",
    "a=x\u{a0}y",
    "a := 1",
    "a:=1",
    "a==1",
    "a = '\n",
    "]",
    ")",
    ",",
    ";",
    "a=\"x\"y",
    "a=\"x\" y",
    "a {b \"x\" y}",
    "a ['x' 'y']",
    "a=\u{7f}",
    "a=1kbi",
    "'a\nb'=1",
    "a {b\n}",
    "a {b:}",
    "a {b=,}",
    "a [b\n",
    "a [,]",
    "a [;]",
    "a=x]\n",
];

#[test]
fn every_text_of_the_tables_is_read_as_nats_server_reads_it() {
    let counts = hold("texts to read", &READ.iter().map(|text| case(*text)).collect::<Vec<_>>());
    assert!(counts.refused.is_empty(), "{:#?}", counts.refused);
    let mut cases: Vec<_> = REFUSED.iter().map(|text| case(*text)).collect();
    cases.extend([&b"a=\xff"[..], b"\xe9=1", b"# \xe9"].map(case));
    let counts = hold("texts to refuse", &cases);
    assert_eq!(counts.refused.len(), cases.len(), "the reader reads one of them: {:#?}", counts.refused);
    assert!(counts.refused_by_us.len() > 20, "{}", counts.said());
}

/// Whole configurations with variables, whose definitions stay in the tree or not by the version.
const DIRECT: &[&str] = &[
    "P=4333\nport=$P",
    "authorization {\n PW = s3cr3t\n user: a\n password: $PW\n}",
    "B { v: a, user: $v, password: b }\nauthorization: $B",
    "server_name: $QUOTED\nmax_payload: $SIZE\nN: $NUMBER\nmax_connections: $N",
    "accounts {\n PERMS { publish: [a] }\n A { users: [ { V: x, user: $V, password: p, permissions: $PERMS } ] }\n}",
    "V: x\ninclude variables.conf\nserver_name: $NAME\ncluster { N: c\n name: $N\n listen: \"127.0.0.1:1\" }",
    "port: 4333 # none\n",
];

#[test]
fn definitions_of_variables_are_in_the_digest_as_the_version_says() {
    let environment = environment();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("variables.conf"), "NAME: n1\nV: y\nhost: $V").unwrap();
    for (version, binary) in binaries() {
        let [major, minor, patch] = [0, 1, 2].map(|index| version.split('.').nth(index).unwrap().parse().unwrap());
        let used = UsedVariables::of((major, minor, patch)).unwrap();
        for text in DIRECT {
            std::fs::write(directory.path().join("direct"), text).unwrap();
            let source = Arc::new(Source::Template(None));
            let name = |file: &Path| Source::File(file.to_owned());
            let read = read(text, source, directory.path(), &environment, &name).unwrap();
            let theirs = theirs(&binary, directory.path(), "direct");
            assert_eq!(Some(digest(&read.map, used)), theirs, "{version}: {text}");
        }
    }
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn random() -> Random {
    let seed = number("CONF_READER_SEED", 13);
    println!("CONF_READER_SEED={seed}");
    Random(fastrand::Rng::with_seed(seed as u64))
}

#[test]
fn random_texts_are_read_as_nats_server_reads_them() {
    let count = number("CONF_READER_RANDOM", 150);
    let mut random = random();
    let trees: Vec<_> = (0..count).map(|_| random.settings(0)).collect();
    let counts = hold("random trees", &trees.iter().map(|text| case(text.as_str())).collect::<Vec<_>>());
    assert!(counts.equal > count, "most random trees are read: {}", counts.said());
    hold("random tokens", &(0..count).map(|_| case(random.soup())).collect::<Vec<_>>());
    let seeds: Vec<_> = trees.iter().map(String::as_str).chain(READ.iter().copied()).map(str::as_bytes).collect();
    hold("mutated texts", &(0..count).map(|_| case(random.mutated(&seeds))).collect::<Vec<_>>());
}

#[test]
fn a_corpus_is_read_as_nats_server_reads_it() {
    let Some(directory) = std::env::var_os("NATS_CONF_CORPUS") else { return };
    let mut files = Vec::new();
    list(Path::new(&directory), &mut files);
    let cases: Vec<_> =
        files.into_iter().map(|file| Case { text: std::fs::read(&file).unwrap(), file: Some(file) }).collect();
    hold("corpus", &cases);
    let seeds: Vec<_> = cases.iter().map(|case| case.text.as_slice()).collect();
    let mut random = random();
    let count = number("CONF_READER_MUTATIONS", 0);
    hold("mutated corpus", &(0..count).map(|_| case(random.mutated(&seeds))).collect::<Vec<_>>());
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            list(&entry, files);
        } else {
            files.push(entry);
        }
    }
}

/// Tokens of the language. An include names a file that includes no other text of the test, so no cycle arises.
const TOKENS: [&str; 62] = [
    "a",
    "b",
    "tls",
    "include one.conf",
    "include 'two.conf'",
    "include",
    " ",
    "  ",
    "\n",
    "\n",
    "\r\n",
    "\t",
    "{",
    "}",
    "{",
    "}",
    "[",
    "]",
    "[",
    "]",
    "(",
    ")",
    "(\n",
    "\n)\n",
    ":",
    "=",
    ":",
    "=",
    ",",
    ";",
    "\"",
    "'",
    "\\",
    "\\x41",
    "\\xc3\\xa9",
    "#",
    "//",
    "/",
    "$",
    "$a",
    "$NUMBER",
    "$MAP",
    "1",
    "5",
    "1k",
    "2kb",
    "1.5",
    "1.2.3.4",
    "-",
    ".",
    "true",
    "off",
    "é",
    "\u{85}",
    "\u{a0}",
    "\0",
    "٣",
    "2016-05-04T18:53:41Z",
    "\"x\"",
    "'y'",
    "x",
    "$2a$x",
];

struct Random(fastrand::Rng);

impl Random {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.0.choice(from).copied().unwrap_or_default()
    }

    fn soup(&mut self) -> String {
        (0..self.0.usize(1..14)).map(|_| self.pick(&TOKENS)).collect()
    }

    fn settings(&mut self, depth: usize) -> String {
        let mut text = String::new();
        for _ in 0..self.0.usize(0..6) {
            text += self.pick(&["", "", " ", "\n", "# c } \" \n", "// '\n", "\t"]);
            if self.0.usize(..12) == 0 {
                text += self.pick(&["include one.conf", "Include 'two.conf'", "include \"sub/three.conf\""]);
            } else {
                text += self.pick(&["a", "b", "V", "W", "\"d e\"", "'f'", "tls", "é", "a.b.>", "TLS"]);
                text += self.pick(&[" ", ": ", "=", " = ", ":", " :\t"]);
                text += &self.value(depth);
            }
            text += self.pick(&["\n", "\n", "\r\n", " \n", " # c\n", " // c\n", ";\n", ",\n", "; ", ", "]);
        }
        text
    }

    fn value(&mut self, depth: usize) -> String {
        match self.0.usize(..if depth > 3 { 7 } else { 9 }) {
            0 => self.pick(&["x", "true", "Off", "x#y", "nats://h:1", "/p/q", "a\\tb", "*", ">", "<&>"]).to_owned(),
            1 => self.pick(&["1", "-7", "5k", "3MiB", "1.5", "-0.25", "0.00000012", "2e", "007"]).to_owned(),
            2 => self.pick(&["1.2.3.4:5", "10s", "2016-05-04T18:53:41Z", "5x", "$2a$11$x"]).to_owned(),
            3 => self.pick(&["$V", "$V", "$W", "$NUMBER", "$MAP", "$OTHER", "$ARRAY"]).to_owned(),
            4 | 5 => {
                let inner: String =
                    (0..self.0.usize(..4)).map(|_| self.pick(&["x", " ", "é", "#", "{", "\n", "<"])).collect();
                if self.0.bool() { format!("\"{inner}\\\"\\xe2\\x82\\xac\"") } else { format!("'{inner}\\'") }
            }
            6 => format!("(\n{}\n)", self.pick(&["x", "y {\n z", ""])),
            7 => {
                let values: String = (0..self.0.usize(..4))
                    .map(|_| self.value(depth + 1) + self.pick(&[", ", "\n", " ,", " # c\n"]))
                    .collect();
                format!("[{values}]")
            }
            _ => format!("{{{}}}", self.settings(depth + 1)),
        }
    }

    fn mutated(&mut self, seeds: &[&[u8]]) -> Vec<u8> {
        let mut text = self.0.choice(seeds).copied().unwrap_or_default().to_vec();
        for _ in 0..self.0.usize(1..4) {
            let at = self.0.usize(..=text.len());
            let end = text.len().min(at + self.0.usize(1..6));
            match self.0.usize(..4) {
                0 => drop(text.drain(at..end)),
                1 => {
                    let piece = text.get(at..end).unwrap_or_default().to_vec();
                    let to = self.0.usize(..=text.len());
                    text.splice(to..to, piece);
                }
                2 => text.truncate(at.max(1)),
                _ => drop(text.splice(at..at, self.pick(&TOKENS).bytes())),
            }
        }
        text
    }
}
