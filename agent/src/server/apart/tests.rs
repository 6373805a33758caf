//! Each fault that a trial hides.

use std::net::TcpListener;

use super::*;

fn tree(text: &str) -> Map {
    crate::conf::read(text, Path::new("test.conf")).unwrap()
}

fn faults(new: &str, running: Option<&str>) -> Vec<(String, Fault, Consequence)> {
    let running = running.map(tree);
    let found = hidden_faults(&tree(new), running.as_ref(), None, None);
    found.into_iter().map(|found| (found.setting, found.fault, found.consequence)).collect()
}

#[test]
fn a_port_that_another_process_has_is_a_fault_and_the_servers_own_is_none() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = i64::from(taken.local_addr().unwrap().port());
    let text = format!("port: -1\ncluster {{ listen: \"127.0.0.1:{port}\" }}");
    let in_use = Fault::PortInUse { host: "127.0.0.1".to_owned(), port };
    assert_eq!(faults(&text, None), [("cluster.listen".to_owned(), in_use, Consequence::WontStart)]);
    assert_eq!(faults(&text, Some(&text)), []);
}

#[test]
fn a_check_leaves_the_port_to_a_server_that_starts_at_this_moment() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!("listen: \"127.0.0.1:{free}\"");
    let ends = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                faults(&text, None);
            }
        });
        for _ in 0..200 {
            drop(TcpListener::bind(("127.0.0.1", free)).unwrap());
        }
        ends.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_port_that_is_none_and_an_address_of_another_machine_are_faults() {
    let fault = |text: &str| faults(text, None).into_iter().map(|(_, fault, _)| fault).collect::<Vec<_>>();
    assert_eq!(fault("port: 70000"), [Fault::NoPort { port: 70000 }]);
    // TEST-NET-1 (RFC 5737) is on no machine.
    assert_eq!(fault("listen: \"192.0.2.1:4222\""), [Fault::AddressNotHere { host: "192.0.2.1".to_owned() }]);
    assert_eq!(fault("listen: \"no such host:4222\""), [Fault::HostUnknown { host: "no such host".to_owned() }]);
    assert_eq!(fault("port: -1\ncluster { port: -1 }"), []);
}

#[test]
fn two_listeners_on_one_port_are_a_fault() {
    let shared = Fault::SharedPort { port: 1, other: Listener::Client };
    let found = |text: &str| faults(text, None).iter().any(|(_, fault, _)| *fault == shared);
    assert!(found("listen: \"127.0.0.1:1\"\nmqtt { listen: \"127.0.0.1:1\" }"));
    assert!(found("listen: \"127.0.0.1:1\"\nwebsocket { listen: \"0.0.0.0:1\" }"));
    assert!(found("listen: \"127.0.0.1:1\"\nhttp_port: 1"));
    assert!(!found("listen: \"127.0.0.1:1\"\nmqtt { listen: \"127.0.0.2:1\" }"));
}

#[test]
fn a_log_that_cannot_be_opened_kills_where_a_reload_opens_it() {
    let with = |rest: &str| format!("port: -1\nlog_file: \"/no/such/log\"\n{rest}");
    let consequence =
        |running: Option<&str>, new: &str| faults(new, running).into_iter().map(|found| found.2).collect::<Vec<_>>();
    assert_eq!(consequence(None, &with("")), [Consequence::WontStart]);
    assert_eq!(consequence(Some("port: -1"), &with("")), [Consequence::Kills]);
    assert_eq!(consequence(Some(&with("")), &with("max_payload: 1")), [Consequence::WontStart]);
    // nats-server opens its log anew for these too.
    for setting in ["debug: true", "trace: true", "logtime: false"] {
        assert_eq!(consequence(Some(&with("")), &with(setting)), [Consequence::Kills], "{setting}");
    }
}

#[test]
fn a_file_goes_before_a_remote_syslog_and_that_before_the_syslog() {
    let setting = |text: &str| faults(text, None).into_iter().map(|found| found.0).collect::<Vec<_>>();
    let all = "port: -1\nsyslog: true\nremote_syslog: \"xx://h\"\n";
    assert_eq!(setting(&format!("{all}log_file: \"/no/such/log\"")), ["log_file"]);
    assert_eq!(setting(all), ["remote_syslog"]);
    assert_eq!(setting(&format!("{all}log_file: \"/dev/stdout\"")), Vec::<String>::new());
}

#[test]
fn a_remote_syslog_that_nobody_answers_at_is_a_fault() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text = format!("port: -1\nremote_syslog: \"tcp://{address}\"");
    assert_eq!(faults(&text, None), []);
    drop(taken);
    let kind = std::io::ErrorKind::ConnectionRefused;
    let dead = Fault::SyslogUnreachable { address: address.to_string(), kind };
    assert_eq!(faults(&text, Some("port: -1")), [("remote_syslog".to_owned(), dead, Consequence::Kills)]);
    let scheme = Fault::SyslogScheme { scheme: "xx".to_owned() };
    assert_eq!(faults("port: -1\nremote_syslog: \"xx://h:1\"", None)[0].1, scheme);
}

#[test]
fn the_pid_file_and_the_store_must_be_writable_and_a_ports_file_is_missed_without_harm() {
    let found = faults(
        "port: -1\npid_file: \"/no/pid\"\nports_file_dir: \"/no\"\njetstream { store_dir: \"/etc/passwd/js\" }",
        None,
    );
    let found: Vec<_> = found.iter().map(|(setting, _, consequence)| (setting.as_str(), *consequence)).collect();
    let (wont, complains) = (Consequence::WontStart, Consequence::Complains);
    assert_eq!(found, [("pid_file", wont), ("store_dir", wont), ("ports_file_dir", complains)]);
    assert_eq!(faults("port: -1\njetstream { enabled: false, store_dir: \"/etc/passwd/js\" }", None), []);
}

#[test]
fn a_fault_names_file_setting_and_remedy() {
    let faults = hidden_faults(&tree("port: -1\nlog_file: \"/no/such/log\""), None, None, None);
    assert_eq!(
        faults[0].to_string(),
        "test.conf:2: log_file: nats-server can't write /no/such/log: the directory /no/such isn't there; make it, or \
         change the path"
    );
}

#[test]
fn a_certificate_that_is_always_stapled_needs_a_responder() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cert.pem");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
    let text = |ocsp: &str| format!("port: -1\ncluster {{ tls {{ cert_file: {file:?} }} }}\n{ocsp}");
    let lacking = [("cert_file".to_owned(), Fault::NoResponder { certificate: file.clone() }, Consequence::WontStart)];
    assert_eq!(faults(&text("ocsp { mode: always }"), None), lacking);
    for fine in ["", "ocsp: true", "ocsp { mode: must }", "ocsp { mode: always, url: \"http://127.0.0.1:1\" }"] {
        assert_eq!(faults(&text(fine), None), [], "{fine}");
    }
    // TLS Feature with status_request: SEQUENCE { INTEGER 5 }.
    let feature = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], vec![0x30, 3, 2, 1, 5]);
    params.custom_extensions = vec![feature];
    std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
    assert_eq!(faults(&text(""), None), lacking);
    assert_eq!(faults(&text("ocsp: false"), None), []);
}
