//! The only reader of PEM in the agent, and it is strict (RFC 7468).
//!
//! Go's reader, and so nats-server, skips a block that it can't read. A skipped block is a CA lost without a word (seen on
//! nats-server 2.9.10 and 2.15.1). Here every line belongs to a complete block or is a comment, and no damage turns a line
//! of a block into a comment.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use super::der;

/// The label of every block that [`certificates`] accepts.
const CERTIFICATE: &str = "CERTIFICATE";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// One decoded block. Its content is not parsed yet.
#[derive(Debug)]
pub(crate) struct Block {
    /// Counted from 1.
    pub(crate) number: usize,
    /// The line of BEGIN, counted from 1.
    pub(crate) line: usize,
    pub(crate) der: Vec<u8>,
}

/// A fault in PEM text, and its place. The text is never quoted: it may be a private key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {number} (line {line}) {fault}")]
pub struct PemError {
    /// The block, counted from 1.
    pub number: usize,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub fault: PemFault,
}

/// What is wrong with a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemFault {
    /// BEGIN without END.
    #[error("begins and is never closed by \"-----END CERTIFICATE-----\": it was cut short; copy it whole")]
    Unclosed,
    /// END without BEGIN.
    #[error("ends and has no \"-----BEGIN CERTIFICATE-----\": its beginning is missing; copy it whole")]
    Unopened,
    /// A line that was BEGIN or END and is damaged.
    #[error(
        "has a damaged BEGIN or END line; it must read \"-----BEGIN CERTIFICATE-----\" or \"-----END CERTIFICATE-----\" and nothing else"
    )]
    Boundary,
    /// Base64 of a certificate outside any block.
    #[error("has neither BEGIN nor END line, and looks like a certificate; add the two lines, or remove it")]
    Stray,
    /// The body is not base64.
    #[error("is damaged: what stands between BEGIN and END is not base64; copy it again")]
    Base64,
    /// A block with another label.
    #[error("is a {label:?} and not a \"CERTIFICATE\"; remove it, or convert it with `openssl x509`")]
    Label {
        /// The label found.
        label: String,
    },
    /// A private key in a file of certificates, which others can read.
    #[error(
        "is a private key; remove it, and replace that key wherever it is used: who can read this can impersonate its owner"
    )]
    PrivateKey,
}

/// The most wrappings around PEM, such as base64 of text with literal line feeds.
const MAX_WRAPPINGS: usize = 4;

/// The PEM text in what somebody stored: with a byte order mark, as UTF-16, as base64 of PEM or of one certificate, as one
/// certificate in DER, with literal `\n`, or with blanks in the place of line feeds. None of these can mean anything else.
/// Anything else is returned as it is.
pub(crate) fn as_stored(stored: &[u8]) -> Cow<'_, [u8]> {
    let mut text = Cow::Borrowed(stored);
    for _ in 0..MAX_WRAPPINGS {
        match unwrapped(&text) {
            Some(inner) => text = Cow::Owned(inner),
            None => break,
        }
    }
    text
}

/// The content of one wrapping. `None`: there is no wrapping.
fn unwrapped(stored: &[u8]) -> Option<Vec<u8>> {
    if let Some(rest) = stored.strip_prefix(b"\xef\xbb\xbf") {
        return Some(rest.to_vec());
    }
    if let Some(text) = utf_16(stored) {
        return Some(text.into_bytes());
    }
    if stored.first() == Some(&0x30) && der::read(stored).is_ok() {
        return Some(encode(stored).into_bytes());
    }
    let text = std::str::from_utf8(stored).ok()?;
    if text.contains(BEGIN) {
        return with_line_feeds(text).map(String::into_bytes);
    }
    let body: Vec<u8> = stored.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let inner = decode(&body)?;
    let holds_pem = inner.windows(BEGIN.len()).any(|window| window == BEGIN.as_bytes());
    (holds_pem || der::read(&inner).is_ok()).then_some(inner)
}

/// Text in UTF-16, with a byte order mark or beginning with a dash as PEM does.
fn utf_16(stored: &[u8]) -> Option<String> {
    let number: fn([u8; 2]) -> u16 = match stored.get(..2)? {
        [0xff, 0xfe] | [b'-', 0] => u16::from_le_bytes,
        [0xfe, 0xff] | [0, b'-'] => u16::from_be_bytes,
        _ => return None,
    };
    let (units, rest) = stored.as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|unit| number(*unit)).collect();
    let text = String::from_utf16(&units).ok().filter(|_| rest.is_empty())?;
    Some(text.trim_start_matches('\u{feff}').to_owned())
}

/// PEM text in which something stood in the place of line feeds.
fn with_line_feeds(text: &str) -> Option<String> {
    let text = if text.contains(&format!("{BEGIN}\\n")) || text.contains(&format!("{BEGIN}\\r\\n")) {
        text.replace("\\r\\n", "\n").replace("\\n", "\n")
    } else if text.contains(&format!("{BEGIN} M")) {
        let begun = text.replace(&format!("{BEGIN} "), &format!("{BEGIN}\n"));
        begun.replace(&format!(" {END}"), &format!("\n{END}")).replace(&format!("{END} "), &format!("{END}\n"))
    } else {
        return None;
    };
    Some(text)
}

/// Reads every certificate. Text between blocks is comment.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<Block>, PemError> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<(usize, Vec<u8>)> = None;
    for (line, text) in (1..).zip(pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii)) {
        let number = blocks.len() + 1;
        let fault = |line, fault| PemError { number, line, fault };
        match (Line::read(text), open.take()) {
            (Line::Begin(CERTIFICATE), None) => open = Some((line, Vec::new())),
            (Line::Begin(label), None) if label.contains("PRIVATE KEY") => {
                return Err(fault(line, PemFault::PrivateKey));
            }
            (Line::Begin(label), None) => return Err(fault(line, PemFault::Label { label: label.to_owned() })),
            (Line::Begin(_), Some((begin, _))) => return Err(fault(begin, PemFault::Unclosed)),
            (Line::End(CERTIFICATE), Some((begin, body))) => {
                let der = decode(&body).ok_or_else(|| fault(begin, PemFault::Base64))?;
                blocks.push(Block { number, line: begin, der });
            }
            (Line::End(_), None) => return Err(fault(line, PemFault::Unopened)),
            (Line::End(_), Some(_)) | (Line::Damaged, _) => return Err(fault(line, PemFault::Boundary)),
            (Line::Text, Some((begin, mut body))) => {
                body.extend(text.iter().filter(|byte| **byte != b' '));
                open = Some((begin, body));
            }
            (Line::Text, None) if is_body(text) => return Err(fault(line, PemFault::Stray)),
            (Line::Text, None) => {}
        }
    }
    match open {
        Some((line, _)) => Err(PemError { number: blocks.len() + 1, line, fault: PemFault::Unclosed }),
        None => Ok(blocks),
    }
}

/// Reads one private key in PKCS#8, as the agent writes it: one block and nothing around it.
///
/// It tells no reason for a failure: a reason could quote the key.
pub(crate) fn private_key(pem: &str) -> Option<PrivatePkcs8KeyDer<'static>> {
    let body = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----")?.strip_suffix("-----END PRIVATE KEY-----")?;
    let body: Zeroizing<Vec<u8>> = Zeroizing::new(body.lines().flat_map(str::bytes).collect());
    decode(&body).map(Into::into)
}

fn decode(body: &[u8]) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(body).ok().filter(|der| !der.is_empty())
}

/// Writes one block in the form of RFC 7468, section 2: lines of 64 characters, LF.
pub(crate) fn encode(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in BASE64_STANDARD.encode(der).chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}

/// A line, by its effect on blocks.
enum Line<'a> {
    Begin(&'a str),
    End(&'a str),
    /// A boundary before it was damaged.
    Damaged,
    Text,
}

impl<'a> Line<'a> {
    fn read(line: &'a [u8]) -> Self {
        let label = |prefix: &[u8]| {
            let label = line.strip_prefix(prefix)?.strip_suffix(b"-----")?;
            let plain = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b' ';
            std::str::from_utf8(label)
                .ok()
                .filter(|label| (1..=40).contains(&label.len()) && label.bytes().all(|byte| plain(&byte)))
        };
        let holds = |part: &[u8]| line.windows(part.len()).any(|window| window == part);
        // A line of dashes alone is comment: no damage turns a boundary into such a line.
        let is_rule = line.iter().all(|byte| *byte == b'-');
        if let Some(label) = label(b"-----BEGIN ") {
            Self::Begin(label)
        } else if let Some(label) = label(b"-----END ") {
            Self::End(label)
        } else if (holds(b"-----") && !is_rule) || holds(b"BEGIN CERTIFICATE") || holds(b"END CERTIFICATE") {
            Self::Damaged
        } else {
            Self::Text
        }
    }
}

/// Whether the line starts a certificate in base64. "MII" is a DER SEQUENCE whose length takes two bytes.
fn is_body(line: &[u8]) -> bool {
    line.starts_with(b"MII") && line.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::test_ca::key;

    #[test]
    fn a_private_key_is_read_whole_or_not_at_all() {
        let (pair, pem) = key();
        let text = pem.expose();
        assert_eq!(private_key(text).unwrap().secret_pkcs8_der(), pair.serialized_der());
        let other = text.replace("PRIVATE KEY", "EC PRIVATE KEY");
        let twice = format!("{text}{text}");
        for damaged in ["", &text[1..], &text[..text.len() - 2], &text.replacen("MIG", "M%G", 1), &other, &twice] {
            assert!(private_key(damaged).is_none());
        }
    }
}
