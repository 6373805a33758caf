//! The trust bundle and its anchors.

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::ParsedExtension;
use x509_parser::x509::X509Version;

use super::distrust::{self, DistrustError, Distrusted, Fingerprint};
use crate::digest::sha256_hex;
use crate::x509::der;
use crate::x509::pem::{self, PemError};

/// The largest bundle, in bytes of PEM. Secrets Manager's own limit is 65,536 bytes; a file may be larger.
pub(crate) const MAX_BUNDLE: usize = 1024 * 1024;

/// The most anchors in a bundle. nats-server tries every anchor at each handshake.
pub(crate) const MAX_ANCHORS: usize = 200;

/// The content of nats-server's `ca_file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// At least one anchor, no duplicates, in the source's order.
    pub anchors: Vec<Anchor>,
    /// A secret's name, a file's path, or `issuer`.
    pub source: String,
    /// Secrets Manager's `VersionId`, or the content's SHA-256. A trailing `+kept` tells of anchors of an earlier bundle.
    pub version: String,
    /// The CAs that are no anchors, whatever is served under them.
    pub distrusted: Distrusted,
    /// The bundle of `[trust.clients]`: further CAs, for what clients present. `None`: clients present what nodes present.
    pub clients: Option<Box<TrustBundle>>,
}

/// One trusted CA certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The certificate itself.
    pub der: Vec<u8>,
    /// The distinguished name, for people.
    pub subject: String,
    /// SHA-256 of the DER, hexadecimal.
    pub sha256: String,
    /// End of validity.
    pub not_after: OffsetDateTime,
}

/// Why a bundle can't be used. One bad block refuses the whole bundle: nats-server would skip that block silently.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Larger than any bundle.
    #[error(
        "the bundle is {size} bytes long, and at most {MAX_BUNDLE} are read; leave in it only the CAs of this cluster"
    )]
    TooLarge {
        /// In bytes.
        size: usize,
    },
    /// The text has no block.
    #[error(
        "the bundle holds no certificate; put the CA's certificate there, a block that begins with \"-----BEGIN CERTIFICATE-----\""
    )]
    Empty,
    /// More anchors than a cluster can need.
    #[error("the bundle holds more than {MAX_ANCHORS} certificates; leave in it only the CAs of this cluster")]
    TooMany,
    /// The PEM text is damaged.
    #[error("{0}")]
    Pem(PemError),
    /// The list of distrusted CAs can't be used.
    #[error(transparent)]
    Distrust(#[from] DistrustError),
    /// Distrust would leave nothing to trust.
    #[error(
        "every CA of the bundle is distrusted ({subjects}), and without an anchor no node and no client could connect: put the \
         certificate of another CA into the bundle, and have `issuer.ca_arn` name that CA"
    )]
    NothingTrusted {
        /// The subjects of the CAs.
        subjects: String,
        /// Every CA that is distrusted.
        distrusted: Distrusted,
    },
    /// A block is no usable CA certificate.
    #[error("block {number} (line {line}{}) {fault}", subject.as_ref().map(|name| format!(", {name}")).unwrap_or_default())]
    Anchor {
        /// The block, counted from 1.
        number: usize,
        /// The line of BEGIN, counted from 1.
        line: usize,
        /// Nothing where the subject can't be read.
        subject: Option<String>,
        /// What is wrong with the CA certificate.
        fault: AnchorFault,
    },
}

/// What is wrong with a certificate that should be an anchor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorFault {
    /// Not X.509 in DER.
    #[error("is damaged: its content is not an X.509 certificate; copy it again")]
    Der,
    /// Bytes follow the certificate.
    #[error("has {count} bytes after its certificate; copy it again")]
    Trailing {
        /// The number of bytes.
        count: usize,
    },
    /// No CA bit.
    #[error(
        "is not a CA certificate (basicConstraints does not say CA:TRUE), so nothing can chain to it; put the certificate of the CA that signs in its place"
    )]
    NotCa,
    /// The CA may not sign certificates.
    #[error("is a CA whose key usage lacks keyCertSign, so nothing can chain to it; have the CA certificate made anew")]
    KeyUsage,
    /// Go rejects a certificate with a key on a curve unknown to Go (`crypto/x509`, `parsePublicKey`).
    #[error(
        "has a key of a kind that nats-server does not know, so nothing can chain to it; use a CA with an RSA key, or one on P-256, P-384 or P-521"
    )]
    Algorithm,
    /// The certificate is altered.
    #[error("is damaged: it is self-signed, and its signature does not match its content; copy it again")]
    Signature,
    /// Go 1.23 and later, and so nats-server, reject such a certificate (`crypto/x509`, go1.23 notes).
    #[error("has a negative serial number, so nats-server would skip it; have the CA certificate made anew")]
    Serial,
}

impl TrustBundle {
    /// Reads a PEM bundle, in each form in which people store it ([`pem::as_stored`]). Text between blocks is comment, and duplicates are dropped. Expired anchors stay: their removal
    /// is up to the bundle's owner.
    pub fn parse(pem: &[u8], source: &str, version: &str) -> Result<Self, BundleError> {
        if pem.len() > MAX_BUNDLE {
            return Err(BundleError::TooLarge { size: pem.len() });
        }
        let pem = pem::as_stored(pem);
        let mut anchors: Vec<Anchor> = Vec::new();
        for block in pem::certificates(&pem).map_err(BundleError::Pem)? {
            let anchor = Anchor::parse(block.der).map_err(|(subject, fault)| BundleError::Anchor {
                number: block.number,
                line: block.line,
                subject,
                fault,
            })?;
            if !anchors.contains(&anchor) {
                anchors.push(anchor);
            }
            if anchors.len() > MAX_ANCHORS {
                return Err(BundleError::TooMany);
            }
        }
        if anchors.is_empty() {
            return Err(BundleError::Empty);
        }
        let distrusted = distrust::in_text(&pem)?;
        let (source, version) = (source.to_owned(), version.to_owned());
        Self { anchors, source, version, distrusted: Distrusted::new(), clients: None }.without(&distrusted)
    }

    /// The bundle without these CAs, for nodes and for clients. Distrust that leaves no anchor for nodes refuses the bundle.
    pub(crate) fn without(mut self, distrusted: &Distrusted) -> Result<Self, BundleError> {
        self.distrusted.extend(distrusted.iter().cloned());
        if self.anchors.iter().all(|anchor| self.distrusts(&anchor.sha256)) {
            let subjects: Vec<_> = self.anchors.into_iter().map(|anchor| anchor.subject).collect();
            return Err(BundleError::NothingTrusted { subjects: subjects.join(", "), distrusted: self.distrusted });
        }
        let (distrusted, clients) = (std::mem::take(&mut self.distrusted), self.clients.take());
        self.anchors.retain(|anchor| !is_among(&distrusted, &anchor.sha256));
        Ok(Self { distrusted, ..self }.with_clients(clients.map(|clients| *clients)))
    }

    /// The bundle with another bundle for what clients present. No client may present what nodes distrust. A CA that the
    /// clients' bundle alone distrusts stays an anchor of nodes.
    pub(crate) fn with_clients(self, clients: Option<Self>) -> Self {
        let clients = clients.map(|mut clients| {
            clients.anchors.retain(|anchor| !self.distrusts(&anchor.sha256));
            Box::new(clients)
        });
        Self { clients, ..self }
    }

    /// The anchors of what clients present, beside the anchors of nodes.
    pub(crate) fn client_anchors(&self) -> &[Anchor] {
        self.clients.as_ref().map_or(&[], |clients| &clients.anchors)
    }

    /// Whether nodes and clients have the same anchors in both bundles.
    pub(crate) fn has_anchors_of(&self, other: &Self) -> bool {
        let of_clients = |bundle: &Self| bundle.clients.as_ref().map(|clients| clients.anchors.clone());
        self.anchors == other.anchors && of_clients(self) == of_clients(other)
    }

    /// The bundle of clients that has no CA, since all its CAs are distrusted. Clients then present what nodes present.
    pub(crate) fn of_no_client(source: &str, version: &str) -> Self {
        let (source, version) = (source.to_owned(), version.to_owned());
        Self { anchors: Vec::new(), source, version, distrusted: Distrusted::new(), clients: None }
    }

    /// The distrusted CAs, a line for each.
    pub(crate) fn distrust_lines(&self) -> String {
        distrust::to_text(&self.distrusted)
    }

    /// The bundle with the distrusted CAs of such lines. Other lines are comment. No anchor goes.
    pub(crate) fn with_distrust_lines(self, text: &str) -> Result<Self, DistrustError> {
        Ok(Self { distrusted: distrust::in_text(text.as_bytes())?, ..self })
    }

    /// The subjects of the anchors of `before` that are distrusted now. A CA of nodes that the clients' bundle alone distrusts is
    /// not among them, because clients may still present its certificates.
    pub(crate) fn distrusted_of(&self, before: &Self) -> Vec<String> {
        let is_distrusted = |anchor: &&Anchor| self.distrusts(&anchor.sha256);
        let is_distrusted_of_clients = |anchor: &&Anchor| {
            is_distrusted(anchor) || self.clients.as_ref().is_some_and(|clients| clients.distrusts(&anchor.sha256))
        };
        let of_nodes = before.anchors.iter().filter(is_distrusted);
        let is_no_node = |anchor: &&Anchor| !self.anchors.contains(anchor);
        let of_clients = before.client_anchors().iter().filter(is_no_node).filter(is_distrusted_of_clients);
        of_nodes.chain(of_clients).map(|anchor| anchor.subject.clone()).collect()
    }

    /// Whether one of these CAs is an anchor.
    pub(crate) fn has_any_of(&self, distrusted: &Distrusted) -> bool {
        self.anchors.iter().any(|anchor| is_among(distrusted, &anchor.sha256))
    }

    /// Whether the certificate with this SHA-256 is distrusted.
    pub(crate) fn distrusts(&self, sha256: &str) -> bool {
        is_among(&self.distrusted, sha256)
    }

    /// The text of nats-server's `ca_file`. The same anchors always give the same text.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.anchors.iter().map(|anchor| pem::encode(&anchor.der)).collect()
    }

    /// The text of nats-server's `ca_file` on listeners of clients: the anchors of clients, and then the anchors of nodes. The
    /// agent is a client too, with the node's certificate.
    pub(crate) fn to_clients_pem(&self) -> String {
        let of_clients = self.client_anchors();
        let of_nodes = self.anchors.iter().filter(|anchor| !of_clients.contains(anchor));
        of_clients.iter().chain(of_nodes).map(|anchor| pem::encode(&anchor.der)).collect()
    }

    /// The distinguished names of the anchors in DER, as a listener names the CAs that it accepts.
    #[must_use]
    pub fn names(&self) -> Vec<Vec<u8>> {
        let name = |anchor: &Anchor| Some(der::read(&anchor.der).ok()?.subject().as_raw().to_vec());
        self.anchors.iter().filter_map(name).collect()
    }

    /// Adds the anchors of `before` that are still needed (invariant 5). Nobody needs a distrusted anchor.
    #[must_use]
    pub fn keeping(&self, before: &Self, needed: impl Fn(&Anchor) -> bool) -> Self {
        let mut bundle = self.clone();
        bundle.anchors.extend(
            before
                .anchors
                .iter()
                .filter(|anchor| !self.distrusts(&anchor.sha256))
                .filter(|anchor| !self.anchors.iter().any(|own| own.der == anchor.der) && needed(anchor))
                .cloned(),
        );
        if bundle.anchors.len() > self.anchors.len() && !bundle.version.ends_with("+kept") {
            bundle.version.push_str("+kept");
        }
        bundle
    }
}

fn is_among(distrusted: &Distrusted, sha256: &str) -> bool {
    distrusted.iter().map(Fingerprint::as_str).any(|known| known == sha256)
}

impl Anchor {
    /// Reads one CA certificate. An error carries the subject where the subject can be read.
    fn parse(der: Vec<u8>) -> Result<Self, (Option<String>, AnchorFault)> {
        let certificate = der::read(&der).map_err(|fault| match fault {
            der::DerFault::Unreadable => (None, AnchorFault::Der),
            der::DerFault::Trailing { count, subject } => (Some(subject), AnchorFault::Trailing { count }),
        })?;
        let subject = der::name(certificate.subject());
        if let Err(fault) = check(&certificate, &der) {
            return Err((Some(subject), fault));
        }
        let not_after = certificate.validity().not_after.to_datetime();
        let sha256 = sha256_hex(&der);
        Ok(Self { der, subject, sha256, not_after })
    }

    /// Whether no CA is above it.
    pub(super) fn is_root(&self) -> bool {
        der::read(&self.der).is_ok_and(|certificate| is_self_signed(&certificate))
    }
}

/// Whether webpki and Go's verifier can both use the certificate as an anchor.
fn check(certificate: &X509Certificate<'_>, der: &[u8]) -> Result<(), AnchorFault> {
    let constraints = certificate.basic_constraints().map_err(|_| AnchorFault::Der)?;
    // Version 1 has no extensions. Go and webpki take such a root (RFC 5280, section 6.1.4, leaves roots to local policy).
    let is_old_root = certificate.version() == X509Version::V1 && is_self_signed(certificate);
    if !is_old_root && !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(AnchorFault::NotCa);
    }
    let usage = certificate.key_usage().map_err(|_| AnchorFault::Der)?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(AnchorFault::KeyUsage);
    }
    if certificate.tbs_certificate.raw_serial().first().is_some_and(|byte| byte & 0x80 != 0) {
        return Err(AnchorFault::Serial);
    }
    // A signature of an unknown algorithm passes: only a wrong signature proves damage.
    if is_self_signed(certificate) && is_signed_by_another(certificate) {
        return Err(AnchorFault::Signature);
    }
    let der = der.into();
    let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|_| AnchorFault::Der)?;
    if has_known_algorithm(&anchor.subject_public_key_info) { Ok(()) } else { Err(AnchorFault::Algorithm) }
}

/// Whether nats-server can verify signatures of this key. `key` is the content of a `SubjectPublicKeyInfo`.
fn has_known_algorithm(key: &[u8]) -> bool {
    let [0x30, length, rest @ ..] = key else { return false };
    let identifier = rest.get(..usize::from(*length));
    der::VERIFIED.iter().any(|algorithm| identifier == Some(algorithm.public_key_alg_id().as_ref()))
}

/// Whether the certificate claims to be signed with its own key. A CA that changes its key issues itself a certificate with
/// equal names (RFC 5280, section 3.2). Key identifiers decide. Only a self-signed certificate may have its own identifier
/// and no other (section 4.2.1.1). Without identifiers the signature decides.
pub(super) fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    let (mut own, mut authority) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0),
            ParsedExtension::AuthorityKeyIdentifier(id) => authority = id.key_identifier.as_ref().map(|id| id.0),
            _ => {}
        }
    }
    let has_own_name = || certificate.subject().as_raw() == certificate.issuer().as_raw();
    match (authority, own) {
        (Some(authority), own) => own == Some(authority),
        (None, Some(_)) => has_own_name(),
        (None, None) => has_own_name() && !is_signed_by_another(certificate),
    }
}

/// Whether the signature is not made with the certificate's own key. A signature of an unknown algorithm tells nothing.
fn is_signed_by_another(certificate: &X509Certificate<'_>) -> bool {
    matches!(certificate.verify_signature(None), Err(X509Error::SignatureVerificationError))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;
    use rcgen::CustomExtension;

    use super::*;
    use crate::x509::pem::{self, PemFault};
    use crate::x509::test_ca::{Ca, key, with_critical_policies};

    fn parse(text: &str) -> Result<TrustBundle, BundleError> {
        TrustBundle::parse(text.as_bytes(), "file", "1")
    }

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    fn subjects(bundle: &TrustBundle) -> Vec<&str> {
        bundle.anchors.iter().map(|anchor| anchor.subject.as_str()).collect()
    }

    #[test]
    fn reads_roots_and_intermediates_among_comments_and_carriage_returns() {
        let root = Ca::root("one");
        let below = root.below("two");
        let text = format!("# our roots\n------\n{}\r\nCN=two\r\n  {}\n", root.pem.replace('\n', "\r\n"), below.pem);
        let bundle = parse(&text).unwrap();
        assert_eq!(subjects(&bundle), ["CN=one", "CN=two"]);
        assert_eq!(bundle.anchors[0].der, root.der);
        assert_eq!(bundle.anchors[0].sha256, sha256_hex(&root.der));
        assert_eq!(bundle.to_pem(), root.pem + &below.pem);
    }

    #[test]
    fn drops_duplicates_and_keeps_the_order() {
        let (one, two) = (Ca::root("one"), Ca::root("two"));
        let bundle = parse(&format!("{}{}{}", two.pem, one.pem, two.pem)).unwrap();
        assert_eq!(subjects(&bundle), ["CN=two", "CN=one"]);
    }

    fn distrust(ca: &Ca) -> String {
        format!("distrust: {}\n", sha256_hex(&ca.der).to_uppercase())
    }

    #[test]
    fn a_distrusted_ca_is_no_anchor_and_never_kept() {
        let (old, new) = (Ca::root("old"), Ca::root("new"));
        let before = parse(&format!("{}{}", old.pem, new.pem)).unwrap();
        let bundle = parse(&format!("{}{}{}", distrust(&old), old.pem, new.pem)).unwrap();
        assert_eq!(subjects(&bundle), ["CN=new"]);
        assert_eq!(subjects(&bundle.keeping(&before, |_| true)), ["CN=new"]);
        // A CA need not stand in the bundle to be distrusted.
        let bundle = parse(&format!("{}{}", distrust(&old), new.pem)).unwrap();
        assert_eq!(subjects(&bundle.keeping(&before, |_| true)), ["CN=new"]);
    }

    #[test]
    fn distrust_that_leaves_no_anchor_refuses_the_bundle() {
        let (old, new) = (Ca::root("old"), Ca::root("new"));
        let said = message(&format!("{}{}{}{}", old.pem, new.pem, distrust(&old), distrust(&new)));
        assert!(said.contains("CN=old, CN=new") && said.contains("another CA"), "{said}");
        assert!(message(&format!("{}distrust: CN=old\n", old.pem)).contains("\"CN=old\""));
    }

    #[test]
    fn keeps_an_expired_anchor() {
        let old = Ca::root_with("old", |params| params.not_after = params.not_before + time::Duration::days(1));
        assert_eq!(subjects(&parse(&old.pem).unwrap()), ["CN=old"]);
    }

    /// A root of version 1, without extensions, made by openssl 3.0. It is valid until 2126.
    const OLD_ROOT: &str = "-----BEGIN CERTIFICATE-----
MIIBITCByQIUCaDG01MdAvr+Q1uQJ2rJpCv95oowCgYIKoZIzj0EAwIwEzERMA8G
A1UEAwwIb2xkIHJvb3QwIBcNMjYxMTI5MTMwMTIyWhgPMjEyNjExMDUxMzAxMjJa
MBMxETAPBgNVBAMMCG9sZCByb290MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
MvOCf6HCRPA3OI886A3TOkWdgyDNF4mAeHlLjg9dN0kH2FRUpbVhsyb2zw7wq84q
Ks1wug4KKXBSKfJUCBJR/jAKBggqhkjOPQQDAgNHADBEAiBldE3qLhNTy6q4NMc/
tjMv6gJDl2aUkLOOU1l8o6+iZQIgNQF6G363BheaZQ80ktTYFI3YdUsFSgmeQIGF
7Zj3BoA=
-----END CERTIFICATE-----
";

    /// A CA without key identifiers.
    fn without_identifiers(params: &mut rcgen::CertificateParams) {
        params.is_ca = rcgen::IsCa::NoCa;
        let mut constraints = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 0x03, 0x01, 0x01, 0xff]);
        constraints.set_criticality(true);
        params.custom_extensions.push(constraints);
    }

    #[test]
    fn an_anchor_that_nats_server_takes_is_taken_whatever_its_form() {
        let old = Ca::root_with("rolled over", without_identifiers);
        let new = Ca::root_with("rolled over", without_identifiers);
        let crossed = old.again(&new, |_| ());
        let policies = Ca::root("root").below_with("with policies", with_critical_policies);
        let text: String = [OLD_ROOT, &old.pem, &new.pem, &crossed.pem, &policies.pem].concat();
        let bundle = parse(&text).unwrap();
        let expected = ["CN=old root", "CN=rolled over", "CN=rolled over", "CN=rolled over", "CN=with policies"];
        assert_eq!(subjects(&bundle), expected);
        // Without the CA that signed it a self-issued certificate is no damage either.
        assert_eq!(subjects(&parse(&crossed.pem).unwrap()), ["CN=rolled over"]);
    }

    #[test]
    fn a_leaf_chains_to_an_anchor_with_critical_policies() {
        let policies = Ca::root("root").below_with("with policies", with_critical_policies);
        let served = [policies.leaf(&key().0).der().clone()].to_vec();
        let chain = crate::x509::chain::Chain::new(served).unwrap();
        assert!(parse(&policies.pem).unwrap().chains(&chain, crate::x509::test_ca::NOW));
    }

    #[test]
    fn a_bundle_is_read_in_each_form_in_which_people_store_it() {
        let (one, two) = (Ca::root("one"), Ca::root("two"));
        let text = format!("{}{}", one.pem, two.pem);
        let whole = parse(&text).unwrap();
        let utf_16 = |order: fn(u16) -> [u8; 2], mark: &str| -> Vec<u8> {
            format!("{mark}{text}").encode_utf16().flat_map(order).collect()
        };
        for (form, stored) in [
            ("a byte order mark", format!("\u{feff}{text}").into_bytes()),
            ("base64 of PEM", BASE64_STANDARD.encode(&text).into_bytes()),
            ("base64 of PEM, in lines", BASE64_STANDARD.encode(&text).replace("LS0tLS1C", "LS0t\nLS1C").into_bytes()),
            ("UTF-16, little end first", utf_16(u16::to_le_bytes, "\u{feff}")),
            ("UTF-16, big end first", utf_16(u16::to_be_bytes, "\u{feff}")),
            ("UTF-16 without a mark", utf_16(u16::to_le_bytes, "")),
            ("literal line feeds", text.replace('\n', "\\n").into_bytes()),
            ("literal carriage returns", text.replace('\n', "\\r\\n").into_bytes()),
            ("blanks for line feeds", text.replace('\n', " ").into_bytes()),
            ("blanks, and none at the end", text.trim_end().replace('\n', " ").into_bytes()),
            ("base64 of literal line feeds", BASE64_STANDARD.encode(text.replace('\n', "\\n")).into_bytes()),
        ] {
            let read = TrustBundle::parse(&stored, "file", "1").unwrap_or_else(|error| panic!("{form}: {error}"));
            assert_eq!(read.anchors, whole.anchors, "{form}");
        }
        let single = parse(&one.pem).unwrap();
        for (form, stored) in
            [("DER", one.der.clone()), ("base64 of DER", BASE64_STANDARD.encode(&one.der).into_bytes())]
        {
            assert_eq!(TrustBundle::parse(&stored, "file", "1").unwrap().anchors, single.anchors, "{form}");
        }
        // A private key in any form stays a private key.
        let (_, secret) = key();
        let hidden = BASE64_STANDARD.encode(format!("{}{}", one.pem, secret.expose()));
        assert!(message(&hidden).contains("is a private key"), "{}", message(&hidden));
    }

    #[test]
    fn a_bundle_without_a_certificate_is_refused() {
        assert!(matches!(parse("").unwrap_err(), BundleError::Empty));
        assert!(matches!(parse("no CA yet\n").unwrap_err(), BundleError::Empty));
    }

    #[test]
    fn a_damaged_block_is_named_by_number_and_line() {
        let (one, two) = (Ca::root("one").pem, Ca::root("two").pem);
        let second = one.lines().count() + 1;
        let cases = [
            (two.replace("-----END CERTIFICATE-----\n", ""), PemFault::Unclosed),
            (two.replace("-----BEGIN CERTIFICATE-----\n", ""), PemFault::Stray),
            (two.replacen("-----BEGIN", "----BEGIN", 1), PemFault::Boundary),
            (two.replacen("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE", 1), PemFault::Boundary),
            (
                two.replacen("CERTIFICATE", "TRUSTED CERTIFICATE", 1),
                PemFault::Label { label: "TRUSTED CERTIFICATE".into() },
            ),
            (two.replacen("MII", "M%I", 1), PemFault::Base64),
            ("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(), PemFault::Base64),
            ("-----END CERTIFICATE-----\n".to_owned(), PemFault::Unopened),
        ];
        for (broken, expected) in cases {
            match parse(&format!("{one}{broken}")).unwrap_err() {
                BundleError::Pem(error) => {
                    assert_eq!(error, PemError { number: 2, line: second, fault: expected });
                }
                other => panic!("{other} instead of {expected}"),
            }
        }
    }

    #[test]
    fn a_block_cut_short_by_the_next_one_is_refused() {
        let (one, two) = (Ca::root("one").pem, Ca::root("two").pem);
        let cut = one.replace("-----END CERTIFICATE-----\n", "");
        assert_eq!(
            message(&format!("{cut}{two}")),
            "block 1 (line 1) begins and is never closed by \"-----END CERTIFICATE-----\": it was cut short; copy it whole"
        );
    }

    #[test]
    fn a_certificate_that_is_damaged_inside_is_named_with_its_subject() {
        let one = Ca::root("one");
        let mut altered = one.der.clone();
        *altered.last_mut().unwrap() ^= 1;
        let mut longer = one.der.clone();
        longer.extend([0, 0]);
        let truncated = &one.der[..one.der.len() - 1];
        assert_eq!(
            message(&pem::encode(&altered)),
            "block 1 (line 1, CN=one) is damaged: it is self-signed, and its signature does not match its content; copy it again"
        );
        assert_eq!(
            message(&pem::encode(&longer)),
            "block 1 (line 1, CN=one) has 2 bytes after its certificate; copy it again"
        );
        assert_eq!(
            message(&pem::encode(truncated)),
            "block 1 (line 1) is damaged: its content is not an X.509 certificate; copy it again"
        );
    }

    #[test]
    fn what_is_no_ca_is_refused() {
        let root = Ca::root("one");
        let leaf = root.leaf(&key().0).pem();
        assert!(message(&leaf).contains("is not a CA certificate"), "{}", message(&leaf));
        let mute = Ca::root_with("mute", |params| params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign]).pem;
        assert!(message(&mute).contains("lacks keyCertSign"), "{}", message(&mute));
    }

    #[test]
    fn a_key_that_older_servers_can_not_verify_with_is_of_no_known_kind() {
        let ml_dsa_44 = [0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x11, 0x03, 0x01, 0];
        assert!(!has_known_algorithm(&ml_dsa_44));
        let ed25519 = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x01, 0];
        assert!(has_known_algorithm(&ed25519));
    }

    #[test]
    fn invariant_01_a_private_key_in_a_bundle_is_called_out_and_not_shown() {
        let (key, pem) = key();
        let text = message(&format!("{}{}", Ca::root("one").pem, pem.expose()));
        assert!(text.starts_with("block 2 (line ") && text.contains("is a private key"), "{text}");
        let secret = BASE64_STANDARD.encode(key.serialized_der());
        for broken in [pem.expose().replace("-----\n", "-----"), pem.expose().replacen("-----", "----", 1)] {
            assert!(!format!("{:?}", parse(&broken).unwrap_err()).contains(&secret[..20]));
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let one = Ca::root("one").pem;
        let text = format!("{}\n{one}", "a".repeat(MAX_BUNDLE));
        assert!(matches!(parse(&text).unwrap_err(), BundleError::TooLarge { .. }));
        let root = Ca::root("root");
        let many: String = (0..=MAX_ANCHORS).map(|number| root.below(&format!("ca {number}")).pem).collect();
        assert!(matches!(parse(&many).unwrap_err(), BundleError::TooMany));
    }

    #[test]
    fn invariant_05_keeps_the_anchors_that_are_still_needed() {
        let (old, gone, new) = (Ca::root("old"), Ca::root("gone"), Ca::root("new"));
        let before = parse(&format!("{}{}", old.pem, gone.pem)).unwrap();
        let after = TrustBundle::parse(new.pem.as_bytes(), "file", "2").unwrap();
        let kept = after.keeping(&before, |anchor| anchor.subject == "CN=old");
        assert_eq!(subjects(&kept), ["CN=new", "CN=old"]);
        assert_eq!(kept.version, "2+kept");
        assert_eq!(after.keeping(&before, |_| false), after);
        assert_eq!(before.keeping(&before, |_| true), before);
    }

    /// Made once: certificates are slow to make, and each property runs many cases.
    static SOME: std::sync::LazyLock<Vec<Ca>> = std::sync::LazyLock::new(|| {
        let root = Ca::root_with("root", |params| params.use_authority_key_identifier_extension = true);
        let below = ["a", "b", "c"].map(|name| root.below(name));
        std::iter::once(root).chain(below).collect()
    });

    proptest! {
        #[test]
        fn what_is_written_is_read_back(picks in prop::collection::vec(0..SOME.len(), 1..12), comment in "[^-M]{0,40}") {
            let text: String = picks.iter().flat_map(|pick| [&SOME[*pick].pem, "\n", &comment, "\n"]).collect();
            let bundle = parse(&text).unwrap();
            prop_assert_eq!(&parse(&bundle.to_pem()).unwrap(), &bundle);
            prop_assert!(picks.iter().all(|pick| bundle.anchors.iter().any(|anchor| anchor.der == SOME[*pick].der)));
        }

        #[test]
        fn no_altered_byte_loses_an_anchor(position in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let text: String = SOME.iter().flat_map(|ca| ["# a CA\n", &ca.pem]).collect();
            let mut bytes = text.into_bytes();
            let position = position.index(bytes.len());
            bytes[position] = byte;
            if let Ok(bundle) = TrustBundle::parse(&bytes, "file", "1") {
                prop_assert_eq!(bundle.anchors.len(), SOME.len());
                // A self-signed certificate shows its own damage.
                let identity = |der: &[u8]| {
                    let ca = der::read(der).ok()?;
                    Some((ca.subject().as_raw().to_owned(), ca.public_key().raw.to_owned()))
                };
                prop_assert_eq!(identity(&bundle.anchors[0].der), identity(&SOME[0].der));
            }
        }

        #[test]
        fn no_lost_line_loses_an_anchor(line in any::<prop::sample::Index>()) {
            let text: String = SOME.iter().map(|ca| ca.pem.as_str()).collect();
            let mut lines: Vec<&str> = text.lines().collect();
            lines.remove(line.index(lines.len()));
            prop_assert!(parse(&lines.join("\n")).is_err());
        }

        #[test]
        fn no_truncation_loses_an_anchor(end in any::<prop::sample::Index>()) {
            let text: String = SOME.iter().map(|ca| ca.pem.as_str()).collect();
            let end = end.index(text.len());
            if let Ok(bundle) = parse(&text[..end]) {
                let whole = text[..end].matches("-----END CERTIFICATE-----").count();
                prop_assert_eq!(bundle.anchors.len(), whole);
                prop_assert_eq!(text[..end].matches("-----BEGIN").count(), whole);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(TrustBundle::parse(&bytes, "file", "1").is_err());
            let block = pem::encode(&bytes);
            prop_assert!(parse(&block).is_err());
        }
    }
}
