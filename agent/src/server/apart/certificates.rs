//! Whether a certificate that needs a stapled OCSP response names a responder (`server/ocsp.go`, `NewOCSPMonitor`).

use std::path::{Path, PathBuf};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{OID_PKIX_ACCESS_DESCRIPTOR_OCSP, Oid, asn1_rs::oid};

use super::{Consequence, Fault, HiddenFault};
use crate::conf::tree::{Map, Value};
use crate::conf::trial::{Listener, block, find};
use crate::state::durable;
use crate::x509::{der, pem};

/// The largest file of certificates, in bytes.
const MAX_CERTIFICATES: u64 = 1024 * 1024;
/// TLS Feature (RFC 7633): the certificate demands `status_request`.
const TLS_FEATURE: Oid<'static> = oid!(1.3.6.1.5.5.7.1.24);

/// Which certificates are stapled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Never,
    MustStaple,
    Always,
}

pub(super) fn faults(new: &Map, cwd: Option<&Path>) -> Vec<HiddenFault> {
    let (mode, has_urls) = mode(new);
    if mode == Mode::Never || has_urls {
        return Vec::new();
    }
    let blocks = Listener::with_a_block().filter_map(|names| block(new, names));
    let mut faults = Vec::new();
    for settings in std::iter::once(new).chain(blocks) {
        let Some(entry) = block(settings, &["tls"]).and_then(|tls| find(tls, &["cert_file"])) else { continue };
        let Some(path) = entry.value.as_text() else { continue };
        let certificate = cwd.unwrap_or(Path::new("/")).join(path);
        if lacks_responder(&certificate, mode) == Some(true) {
            faults.push(HiddenFault {
                setting: "cert_file".to_owned(),
                origin: Some(entry.origin.clone()),
                fault: Fault::NoResponder { certificate: PathBuf::from(path) },
                consequence: Consequence::WontStart,
            });
        }
    }
    faults
}

/// The mode of OCSP stapling, and whether responders are set.
fn mode(tree: &Map) -> (Mode, bool) {
    match find(tree, &["ocsp"]).map(|entry| &entry.value) {
        Some(Value::Bool(false)) => (Mode::Never, false),
        Some(Value::Map(ocsp)) => {
            let mode = find(ocsp, &["mode"]).and_then(|mode| mode.value.as_text()).unwrap_or_default().to_lowercase();
            let mode = match mode.as_str() {
                "always" => Mode::Always,
                "never" => Mode::Never,
                _ => Mode::MustStaple,
            };
            (mode, find(ocsp, &["url", "urls"]).is_some())
        }
        _ => (Mode::MustStaple, false),
    }
}

/// `None`: the certificate can't be read. `nats-server -t` reports such a certificate.
fn lacks_responder(file: &Path, mode: Mode) -> Option<bool> {
    let bytes = durable::read_if_there(file, MAX_CERTIFICATES).ok().flatten()?;
    let blocks = pem::certificates(&bytes).ok()?;
    let certificate = der::read(&blocks.first()?.der).ok()?;
    let is_stapled = mode == Mode::Always || must_staple(&certificate);
    Some(is_stapled && !names_responder(&certificate))
}

fn must_staple(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().any(|extension| extension.oid == TLS_FEATURE)
}

fn names_responder(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => {
            access.accessdescs.iter().any(|description| description.access_method == OID_PKIX_ACCESS_DESCRIPTOR_OCSP)
        }
        _ => false,
    })
}
