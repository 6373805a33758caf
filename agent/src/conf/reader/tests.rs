use std::ffi::OsString;

use proptest::prelude::*;

use super::*;

const FILE: &str = "/etc/nats/a.conf";

fn source() -> Arc<Source> {
    Arc::new(Source::File(FILE.into()))
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    let process = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Environment::new(process, None).unwrap()
}

fn try_in(text: &str, directory: &Path, variables: &[(&str, &str)]) -> Result<Read, ConfError> {
    read(text, source(), directory, &environment(variables), &|file| Source::File(file.to_owned()))
}

fn try_read(text: &str) -> Result<Read, ConfError> {
    try_in(text, Path::new("/nowhere"), &[])
}

fn tree(text: &str) -> Map {
    try_read(text).unwrap_or_else(|error| panic!("{text:?}: {error}")).map
}

fn refused(text: &str) -> String {
    try_read(text).unwrap_err().to_string()
}

fn entry(value: Value) -> Entry {
    Entry::new(value, Origin { source: source(), line: 0 })
}

fn text(value: &str) -> Value {
    Value::text(value)
}

fn map<const N: usize>(settings: [(&str, Value); N]) -> Map {
    let mut map = Map::default();
    for (name, value) in settings {
        map.insert(name, entry(value));
    }
    map
}

fn array<const N: usize>(values: [Value; N]) -> Value {
    Value::Array(values.into_iter().map(entry).collect())
}

/// The value of `a`.
fn value(text: &str) -> Value {
    tree(text).get("a").unwrap().value.clone()
}

/// A directory with files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = directory.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    directory
}

#[test]
fn settings_are_separated_as_nats_server_allows() {
    let expected = map([("a", Value::Integer(1)), ("b", text("x")), ("c", Value::Bool(true))]);
    for written in [
        "a: 1\nb: x\nc: true",
        "a = 1; b = \"x\"; c = yes",
        "a 1 # comment\nb 'x' // comment\n\n# comment\nc on",
        "{ \"a\": 1, \"b\": \"x\", \"c\": true }",
        "{ a: 1, b: x\nc: true\n}\n",
        "a\n1\r\nb:x,c: TRUE",
        "a\t:\t1\r# c\rb:x\rc:YES",
    ] {
        assert_eq!(tree(written), expected, "{written}");
    }
}

#[test]
fn names_end_at_blanks_and_separators_alone() {
    let expected = map([("a.b>", text("x")), ("$c", text("y")), ("d e", text("z")), ("include", text("i"))]);
    assert_eq!(tree("a.b>=x\n$c y\n'd e':z\ninclude: i"), expected);
    assert_eq!(tree("\"include\" x"), map([("include", text("x"))]));
}

#[test]
fn numbers_have_units_and_end_where_nats_server_ends_them() {
    for (written, expected) in [
        ("0", 0),
        ("-0", 0),
        ("007", 7),
        ("-5", -5),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
        ("1k", 1000),
        ("-2K", -2000),
        ("2kb", 2048),
        ("2KiB", 2048),
        ("2ki", 2048),
        ("3m", 3_000_000),
        ("3MB", 3 << 20),
        ("1g", 1_000_000_000),
        ("1gib", 1 << 30),
        ("1t", 1_000_000_000_000),
        ("1tb", 1 << 40),
        ("1p", 1_000_000_000_000_000),
        ("1pi", 1 << 50),
        ("1e", 1_000_000_000_000_000_000),
        ("7eb", 7 << 60),
    ] {
        for end in ["", "\n", " ", ",", ";"] {
            assert_eq!(value(&format!("a={written}{end}")), Value::Integer(expected), "{written}{end:?}");
        }
    }
    assert_eq!(value("a=[ 1, 2 ]"), array([Value::Integer(1), Value::Integer(2)]));
    assert_eq!(value("a=[-5]"), array([Value::Integer(-5)]));
}

#[test]
fn fractions_addresses_dates_and_texts_may_begin_with_a_digit() {
    assert_eq!(value("a=[1.5,-0.25]"), array([Value::Float(1.5), Value::Float(-0.25)]));
    let date = |text: &str| Value::Date(text.to_owned());
    assert_eq!(value("a=[2016-02-29T18:53:41Z]"), array([date("2016-02-29T18:53:41Z")]));
    assert_eq!(value("a=0000-01-01T00:00:00Z"), date("0000-01-01T00:00:00Z"));
    for written in ["127.0.0.1:4222", "-1.2.3", "1.2.3-4:5", "10s", "5x", "1h30", "5:6", "5#x", "5kx", "1_0", ":80"] {
        assert_eq!(value(&format!("a={written}")), text(written));
    }
}

#[test]
fn texts_are_read_with_their_escapes() {
    for (written, expected) in [
        (r#""\t\n\r\"\\\x41\xc3\xa9""#, "\t\n\r\"\\Aé"),
        (r"'\t\x41'", r"\t\x41"),
        (r"foo\tbar", "foo\tbar"),
        (r"tr\x75e", "true"),
        (r"\x24X", "$X"),
        ("b#c", "b#c"),
        ("b //c", "b"),
        ("\"x\ny\"", "x\ny"),
        ("(\nfoo\n (x)\n)\n", "\nfoo\n (x)\n"),
        ("$2a$11$abc", "$2a$11$abc"),
        ("null", "null"),
        ("URL(\"http://x\")", "URL(\"http://x\")"),
    ] {
        assert_eq!(value(&format!("a={written}")), text(expected), "{written}");
    }
    for written in ["true", "YES", "On"] {
        assert_eq!(value(&format!("a={written}")), Value::Bool(true));
    }
    for written in ["false", "NO", "Off"] {
        assert_eq!(value(&format!("a={written}")), Value::Bool(false));
    }
    assert_eq!(value("a='true'"), text("true"));
}

#[test]
fn the_later_of_two_settings_wins_whole_and_case_makes_two() {
    assert_eq!(tree("a {b x}\na {c y}"), map([("a", Value::Map(map([("c", text("y"))])))]));
    assert_eq!(tree("PORT: x\nPort: y"), map([("PORT", text("x")), ("Port", text("y"))]));
}

#[test]
fn every_value_knows_its_file_and_line() {
    let map = tree("a: x\nb {\n  c:\n   [ x\n\ny ]\n}");
    let place = |entry: &Entry| entry.origin.to_string();
    assert_eq!(place(map.get("a").unwrap()), "/etc/nats/a.conf:1");
    assert_eq!(place(map.get("b").unwrap()), "/etc/nats/a.conf:2");
    let inner = map.get("b").unwrap().value.as_map().unwrap().get("c").unwrap();
    assert_eq!(place(inner), "/etc/nats/a.conf:3");
    let lines: Vec<_> = inner.value.as_array().unwrap().iter().map(|entry| entry.origin.line).collect();
    assert_eq!(lines, [4, 6]);
}

#[test]
fn what_is_no_configuration_is_refused_with_line_and_remedy() {
    for (written, line, remedy) in [
        ("a=x\nb=\0", 2, "NUL"),
        ("\u{feff}a=1", 1, "byte order mark"),
        ("a: 1\nb: \"x", 2, "a closing \""),
        ("a {\n b: 1\n", 1, "a closing }"),
        ("{a:1\n", 1, "a closing }"),
        ("a=1\n}", 2, "without its {"),
        ("a: [x, y", 1, "a closing ]"),
        ("a = [\"", 1, "a closing \""),
        ("a: [ 1, 2]\nb: 2", 1, "write a blank or a new line before the ]"),
        ("a: [5k]", 1, "write a blank or a new line before the ]"),
        ("a:\nb", 1, "\"\" for an empty string"),
        ("foo { bar }", 1, "a name without a value"),
        ("a\n\n", 1, "a name without a value"),
        ("a: \"x\" y", 1, "text after a value"),
        ("a: [x y]", 1, "neither a comma nor ]"),
        ("a: \"\\q\"", 1, "\\ that begins no escape"),
        ("a: \"\\xg0\"", 1, "\\ that begins no escape"),
        ("a: \"\\xff\"", 1, "UTF-8"),
        (": 1", 1, "':' stands where a setting's name"),
        ("a{b:1}", 1, "'{' is a part of the name"),
        ("\"\"=5", 1, "a quoted name"),
        ("/foo: 1", 1, "a single /"),
        ("a=1.2.3.4/8", 1, "a single /"),
        ("a # c", 1, "begins with '#'"),
        ("a := 1", 1, "begins with '='"),
        ("a=it's", 1, "'\\'' within a value"),
        ("a=x\u{a0}y", 1, "'\\u{a0}' within a value"),
        ("a=(\nfoo\n)", 3, "end the file with a line feed"),
        ("a=(\nfoo\n)\r\n", 3, "alone on its line"),
        ("a=20e", 1, "too large"),
        ("a=9223372036854775808", 1, "too large"),
        ("a=1kbb", 1, "an unknown unit"),
        ("a=1k5", 1, "a digit after the unit"),
        ("a=1.5e3", 1, "text after a value"),
        ("a=2015-02-29T00:00:00Z", 1, "a date as 2006-01-02T15:04:05Z"),
        ("a=٣", 1, "0 to 9"),
        ("a=5٣", 1, "0 to 9"),
        ("a=$a", 1, "$a is defined nowhere; define it in the file of nats.environment_file"),
        ("port=1\nhttp_port=$port", 2, "$port refers to a setting"),
        ("A {v 1, w $v}\nb [$A]", 2, "$A is a block with variables of its own"),
        ("\ninclude *.conf", 2, "one include for each file"),
        ("\ninclude missing.conf", 2, "/nowhere/missing.conf is not there"),
        ("İnclude x", 1, "a plain path"),
        ("include x, b=1", 1, "a plain path"),
    ] {
        let error = refused(written);
        assert!(error.starts_with(&format!("{FILE}:{line}: ")), "{written:?}: {error}");
        assert!(error.contains(remedy), "{written:?}: {error}");
    }
}

#[test]
fn no_error_shows_what_may_be_a_secret() {
    for written in [
        "a: hunter2'",
        "a: $2y$10$hunter2",
        "a: $+hunter2",
        "a: \"hunter2",
        "a: 'hunter2' hunter2",
        "a: hunter2 hunter2",
        "hunter2{",
        "a: \"hunter2\\xff\"",
    ] {
        let error = try_read(written).unwrap_err();
        assert!(!format!("{error}{error:?}").contains("hunter2"), "{error}");
    }
    let error = try_in("a: $P", Path::new("/"), &[("P", "hunter2 hunter2")]).unwrap_err();
    assert!(!format!("{error}{error:?}").contains("hunter2"), "{error}");
    let read = try_in("a: $P", Path::new("/"), &[("P", "hunter2")]).unwrap();
    assert!(!format!("{read:?}").contains("hunter2"), "{read:?}");
}

#[test]
fn a_variable_has_the_value_of_the_innermost_definition_before_it() {
    let used = "v=x\nm {w=$v, v=y, x=$v}\nz=$v\nv=w";
    let inner = map([("w", text("x")), ("v", text("y")), ("x", text("y"))]);
    assert_eq!(tree(used), map([("v", text("w")), ("m", Value::Map(inner)), ("z", text("x"))]));
    assert_eq!(tree("A [x]\nb [$A]"), map([("A", array([text("x")])), ("b", array([array([text("x")])]))]));
    // A block that is complete hides its definitions.
    assert!(matches!(try_read("m {v=x}\na=$v").unwrap_err().fault, Fault::Undefined(name) if name == "v"));
}

#[test]
fn the_definition_that_a_variable_refers_to_is_marked() {
    let map = tree("A=x\nb=$A\nA=y\nC=1\nd { e=$C }");
    let used: Vec<_> = map.iter().filter(|(_, entry)| entry.is_used_variable).map(|(name, _)| name).collect();
    // The second A replaces the first, and nothing refers to it.
    assert_eq!(used, ["C"]);
    assert_eq!(map.get("b").unwrap().origin.line, 2);
}

#[test]
fn variables_of_the_environment_are_read_as_values() {
    let variables = [
        ("N", "22"),
        ("S", "10MB"),
        ("Q", "'3x'"),
        ("M", "{b: 1, c: $b}"),
        ("A", "[1 ,x ]"),
        ("E", ""),
        ("O", "$N"),
        ("UNUSED", "x"),
        ("NL", "x\n"),
    ];
    let nowhere = Path::new("/nowhere");
    let read = try_in("n=$N\ns=$S\nq=$Q\nm=$M\na=$A\ne=$E\no=$O\nl=$NL", nowhere, &variables).unwrap();
    let expected = map([
        ("n", Value::Integer(22)),
        ("s", Value::Integer(10 << 20)),
        ("q", text("3x")),
        ("m", Value::Map(map([("b", Value::Integer(1)), ("c", Value::Integer(1))]))),
        ("a", array([Value::Integer(1), text("x")])),
        ("e", text("")),
        ("o", Value::Integer(22)),
        ("l", text("x")),
    ]);
    assert_eq!(read.map, expected);
    assert_eq!(read.map.get("q").unwrap().origin.to_string(), "$Q");
    assert!(read.map.get("m").unwrap().value.as_map().unwrap().iter().all(|(_, entry)| !entry.is_used_variable));
    let names: Vec<_> = read.environment.keys().map(String::as_str).collect();
    assert_eq!(names, ["A", "E", "M", "N", "NL", "O", "Q", "S"]);
    assert_eq!(read.environment.get("S").map(|value| value.as_str()), Some("10MB"));
    // The text's own definition wins.
    let read = try_in("N=x\nn=$N", nowhere, &variables).unwrap();
    assert!(read.environment.is_empty() && read.map.get("n").unwrap().value == text("x"));
}

#[test]
fn a_variable_of_the_environment_that_is_no_single_value_is_refused_at_its_use() {
    let many: Vec<_> = (0..20).map(|index| (format!("V{index}"), format!("$V{}", index + 1))).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for (variables, name, said) in [
        (&[("V", "a;b=c")][..], "V", "$V as a value"),
        (&[("V", "x\npk=y")], "V", "$V as a value"),
        (&[("V", "a b")], "V", "$V as a value"),
        (&[("V", "#x")], "V", "begins with '#'"),
        (&[("V", "{ include a }")], "V", "an include within a variable"),
        (&[("V", "$V")], "V", "$V of the environment refers to itself"),
        (&[("V", "[ $W ]"), ("W", "$V")], "V", "$V of the environment refers to itself"),
        (&[("V", "$W")], "V", "$W is defined nowhere"),
        (&many, "V0", "more than 8"),
    ] {
        let error = try_in(&format!("a=x\nb=${name}"), Path::new("/nowhere"), variables).unwrap_err().to_string();
        assert!(error.starts_with("/etc/nats/a.conf:2: ") && error.contains(said), "{error}");
    }
}

#[test]
fn includes_are_read_in_their_place_from_the_directory_of_their_file() {
    let files = [
        ("conf.d/one.conf", "cluster { name: b }\ninclude \"two.conf\""),
        ("conf.d/two.conf", "user: me\nV: x\nw: $V"),
        ("absolute/etc/a.conf", "user: you"),
    ];
    let directory = directory(&files);
    let path = |name: &str| directory.path().join(name);
    let read = try_in("cluster { n: a }\nInclude 'conf.d/x/../one.conf'; y: $w", directory.path(), &[]).unwrap();
    let cluster = Value::Map(map([("name", text("b"))]));
    let expected = [("cluster", cluster), ("user", text("me")), ("V", text("x")), ("w", text("x")), ("y", text("x"))];
    assert_eq!(read.map, map(expected));
    assert_eq!(read.files, [path("conf.d/one.conf"), path("conf.d/two.conf")]);
    assert_eq!(read.map.get("user").unwrap().origin.to_string(), format!("{}:1", path("conf.d/two.conf").display()));
    assert!(read.map.get("V").unwrap().is_used_variable);
    // An absolute path goes below the directory too, as in nats-server.
    let read = try_in("b { include /etc/a.conf }", &path("absolute"), &[]).unwrap();
    assert_eq!(read.map, map([("b", Value::Map(map([("user", text("you"))])))]));
}

#[test]
fn the_origins_of_an_included_file_have_the_given_name() {
    let directory = directory(&[("s.conf", "a: x\nb { c: y }"), ("bad.conf", "\na {")]);
    let name = |_: &Path| Source::Secret("nats/accounts".to_owned());
    let read_all = |text| read(text, source(), directory.path(), &Environment::default(), &name);
    let read = read_all("include s.conf").unwrap();
    assert_eq!(read.map.get("b").unwrap().origin.to_string(), "secret:nats/accounts:2");
    assert!(read_all("include bad.conf").unwrap_err().to_string().starts_with("secret:nats/accounts:2: "));
}

#[test]
fn a_given_content_stands_in_the_place_of_the_file() {
    let directory = directory(&[("a.conf", "a: disk")]);
    let read_with = |contents: &Contents| {
        let name = |file: &Path| Source::File(file.to_owned());
        let text = "include a.conf\ninclude b.conf";
        super::read_with(text, source(), directory.path(), &Environment::default(), &name, contents)
    };
    let file = |name: &str| directory.path().join(name);
    let content = |name: &str, text: &str| (file(name), Zeroizing::new(text.to_owned()));
    let read = read_with(&[content("a.conf", "a: given"), content("b.conf", "b: given")].into()).unwrap();
    assert_eq!(read.map, map([("a", text("given")), ("b", text("given"))]));
    assert_eq!(read.files, [file("a.conf"), file("b.conf")]);
    let read = read_with(&[content("b.conf", "b: given")].into()).unwrap();
    assert_eq!(read.map, map([("a", text("disk")), ("b", text("given"))]));
    assert!(matches!(read_with(&Contents::new()).unwrap_err().fault, Fault::Missing(_)));
}

#[test]
fn an_included_file_does_not_see_the_variables_of_its_includer() {
    let directory = directory(&[("a.conf", "a: $V")]);
    let error = try_in("V: x\ninclude a.conf", directory.path(), &[]).unwrap_err();
    assert!(matches!(error.fault, Fault::Undefined(ref name) if name == "V"), "{error}");
    assert!(try_in("V: x\ninclude a.conf", directory.path(), &[("V", "y")]).is_ok());
}

#[test]
fn a_block_of_an_included_file_that_replaces_another_is_reported() {
    let directory = directory(&[("a.conf", "TLS { a: x }\nnew { }\nplain: x"), ("b.conf", "\n\ninclude a.conf")]);
    let read = try_in("plain: y\ncluster {\n tls { b: y }\n include b.conf\n}", directory.path(), &[]).unwrap();
    let [replaced] = &read.replaced[..] else { panic!("{:?}", read.replaced) };
    assert_eq!(replaced.path, ["cluster", "TLS"]);
    assert_eq!(replaced.before.to_string(), "/etc/nats/a.conf:3");
    assert_eq!(replaced.after.to_string(), format!("{}:1", directory.path().join("a.conf").display()));
    // The text's own later block is no concern.
    assert!(try_in("include a.conf\ntls { b: y }\ntls { c: y }", directory.path(), &[]).unwrap().replaced.is_empty());
    let read = try_in("users [ { tls { } }, { tls { }\n include a.conf } ]", directory.path(), &[]).unwrap();
    assert_eq!(read.replaced.iter().map(|replaced| &replaced.path[..]).collect::<Vec<_>>(), [["users", "1", "TLS"]]);
}

#[test]
fn faulty_includes_are_refused_with_the_place_of_the_include_or_of_the_fault() {
    let many: String = "include empty.conf\n".repeat(MAX_INCLUDES + 1);
    let directory = directory(&[
        ("loop.conf", "a: 1\ninclude loop.conf"),
        ("one.conf", "include two.conf"),
        ("two.conf", "\ninclude one.conf"),
        ("half.conf", "a: 1\nb {\n c: 1\n"),
        ("bom.conf", "\u{feff}a: 1"),
        ("empty.conf", ""),
        ("chain0.conf", "include chain1.conf"),
    ]);
    for index in 1..20 {
        let text = format!("include chain{}.conf", index + 1);
        std::fs::write(directory.path().join(format!("chain{index}.conf")), text).unwrap();
    }
    std::fs::write(directory.path().join("latin1.conf"), b"a: 1\nb: \xe9\n").unwrap();
    std::fs::create_dir(directory.path().join("d")).unwrap();
    for (text, file, line, said) in [
        ("\ninclude loop.conf", "loop.conf", 2, "includes itself"),
        ("\ninclude one.conf", "two.conf", 2, "includes itself"),
        ("\ninclude half.conf", "half.conf", 2, "half-written"),
        ("\ninclude bom.conf", "bom.conf", 1, "byte order mark"),
        ("\ninclude latin1.conf", "latin1.conf", 2, "not UTF-8"),
        ("\ninclude d", FILE, 2, "could not read the included file"),
        ("\ninclude chain0.conf", "chain7.conf", 1, "nest deeper"),
        (&many, FILE, 1001, "more than 1000 includes"),
    ] {
        let error = try_in(text, directory.path(), &[]).unwrap_err().to_string();
        let place = format!("{}:{line}: ", directory.path().join(file).display());
        assert!(error.starts_with(&place) && error.contains(said), "{error}");
    }
}

#[test]
fn sizes_and_depths_have_limits() {
    let fault = |text: &str| try_read(text).unwrap_err().fault;
    assert!(matches!(fault(&format!("a {}", "[".repeat(100_000))), Fault::TooDeep));
    assert!(matches!(fault(&"a {".repeat(100_000)), Fault::TooDeep));
    assert!(matches!(fault(&" ".repeat(MAX_SIZE + 1)), Fault::TooLarge));
    let nested = |depth: usize| format!("a {}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(try_read(&nested(MAX_DEPTH)).is_ok() && try_read(&nested(MAX_DEPTH + 1)).is_err());
    let lines = |count, line: fn(usize) -> String| (1..count).map(line).collect::<Vec<_>>().concat();
    // Blocks that double with each line, and blocks that nest by their names alone.
    let doubling = lines(64, |n| format!("v{n} [$v{}, $v{}]\n", n - 1, n - 1));
    assert!(matches!(fault(&format!("v0 x\n{doubling}")), Fault::TooDeep | Fault::TooLarge));
    let wide = lines(9, |n| format!("v{n} [{}]\n", format!("$v{}\n", n - 1).repeat(50)));
    assert!(matches!(fault(&format!("v0 x\n{wide}")), Fault::TooLarge));
    let deep = lines(64, |n| format!("v{n} {{ a $v{} }}\n", n - 1));
    assert!(matches!(fault(&format!("v0 x\n{deep}")), Fault::TooDeep));
    let large = "x".repeat(1 << 20);
    assert!(matches!(fault(&format!("v {large}\n{}", "a $v\n".repeat(40))), Fault::TooLarge));
}

#[test]
fn ten_thousand_users_with_a_variable_each_are_read() {
    let users: Vec<_> = (0..10_000).map(|n| format!("{{ user: u{n}, password: \"p{n}\", permissions: $P }}")).collect();
    let read = tree(&format!("authorization {{\n P {{ publish: [ a, b ] }}\n users [\n{}\n]\n}}", users.join("\n")));
    let users = read.get("authorization").unwrap().value.as_map().unwrap().get("users").unwrap();
    assert_eq!(users.value.as_array().unwrap().len(), 10_000);
}

#[test]
fn bytes_that_are_not_utf8_are_named_by_their_line() {
    assert_eq!(utf8("é\n".as_bytes(), &source()).unwrap(), "é\n");
    let error = utf8(b"a: 1\n\nb: \xe9", &source()).unwrap_err();
    assert!(error.to_string().starts_with("/etc/nats/a.conf:3: the file is not UTF-8"), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
        drop(try_read(&text));
    }

    #[test]
    fn any_pieces_of_the_language_are_read_or_refused(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "a", "tls", "include", " ", "\n", "\r", "\t", "{", "}", "[", "]", "(", ")", "\n)\n", ":", "=", ",", ";", "\"",
            "'", "\\", "\\x4", "#", "//", "/", "$", "$V", "1", "1k", "1.", "-", ".", "true", "é", "\u{85}", "\0", "٣",
        ]), 0..60),
    ) {
        let variables = [("V", "{ a [ $W ] }"), ("W", "$V1"), ("V1", "x")];
        drop(try_in(&pieces.concat(), Path::new("/nowhere"), &variables));
    }

    #[test]
    fn any_quoted_text_and_any_integer_is_read_back(texts in prop::collection::vec("[^\0]*", 0..8), number: i64) {
        let quoted = |text: &String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let written: Vec<_> = texts.iter().map(quoted).collect();
        let read = tree(&format!("a [{}]\nb {number}", written.join(",")));
        let expected = texts.iter().map(|value| entry(text(value))).collect();
        prop_assert_eq!(read, map([("a", Value::Array(expected)), ("b", Value::Integer(number))]));
    }

    #[test]
    fn any_date_of_the_calendar_is_read(seconds in -62_167_219_200..253_402_300_800_i64) {
        let moment = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let (date, clock) = (moment.date(), moment.time());
        let written = format!("{date}T{:02}:{:02}:{:02}Z", clock.hour(), clock.minute(), clock.second());
        prop_assert_eq!(value(&format!("a={written}")), Value::Date(written));
    }
}
