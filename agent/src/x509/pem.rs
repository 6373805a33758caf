//! PEM, read strictly (RFC 7468).
//!
//! Go's reader, and with it nats-server, skips a block that it can't read, and a block that is skipped is a CA lost
//! without a word (seen on nats-server 2.9.10 and 2.15.1). Here every line either belongs to a whole block or is
//! comment that can't be mistaken for a part of one.

use aws_smithy_types::base64;

/// The only label that is read.
const CERTIFICATE: &str = "CERTIFICATE";

/// One block's content.
#[derive(Debug)]
pub(crate) struct Block {
    /// Counted from 1.
    pub(crate) number: usize,
    /// The line of its BEGIN, counted from 1.
    pub(crate) line: usize,
    /// What the base64 text stands for. Not looked at.
    pub(crate) der: Vec<u8>,
}

/// What is wrong with PEM text, and where. No content is quoted: it may be a private key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {number} (line {line}) {fault}")]
pub struct PemError {
    /// The block, counted from 1.
    pub number: usize,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
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
    /// A boundary line that is not written as one.
    #[error(
        "has a damaged BEGIN or END line; it must read \"-----BEGIN CERTIFICATE-----\" or \"-----END CERTIFICATE-----\" and nothing else"
    )]
    Boundary,
    /// A body outside any block.
    #[error("has neither BEGIN nor END line, and looks like a certificate; add the two lines, or remove it")]
    Stray,
    /// The body is not base64.
    #[error("is damaged: what stands between BEGIN and END is not base64; copy it again")]
    Base64,
    /// A block of some other kind.
    #[error("is a {label:?} and not a \"CERTIFICATE\"; remove it, or convert it with `openssl x509`")]
    Label {
        /// Its label.
        label: String,
    },
    /// A private key where only public things belong.
    #[error(
        "is a private key; remove it, and replace that key wherever it is used: who can read this can impersonate its owner"
    )]
    PrivateKey,
}

/// Reads every block. Text between blocks is comment.
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
                let der = std::str::from_utf8(&body)
                    .ok()
                    .and_then(|body| base64::decode(body).ok())
                    .filter(|der| !der.is_empty())
                    .ok_or_else(|| fault(begin, PemFault::Base64))?;
                blocks.push(Block { number, line: begin, der });
            }
            (Line::End(_), None) => return Err(fault(line, PemFault::Unopened)),
            (Line::End(_), Some(_)) | (Line::Damaged, _) => return Err(fault(line, PemFault::Boundary)),
            (Line::Text, Some((begin, mut body))) => {
                body.extend_from_slice(text);
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

/// One block, as RFC 7468, section 2, has generators write it: lines of 64 characters, LF.
pub(crate) fn encode(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in base64::encode(der).chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}

/// A line, by what it does to blocks.
enum Line<'a> {
    Begin(&'a str),
    End(&'a str),
    /// Was a boundary once.
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
        // A rule of dashes is comment: no damage makes a boundary into one.
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

/// Whether the line begins a certificate in base64: a DER SEQUENCE with a length of two bytes.
fn is_body(line: &[u8]) -> bool {
    line.starts_with(b"MII") && line.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte))
}
