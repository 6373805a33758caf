//! The CA certificates that nobody trusts any more, by their SHA-256.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The digits of a SHA-256.
const DIGITS: usize = 64;
/// The most entries. Each entry stands for a CA that leaked, and nobody has so many CAs.
const MAX_ENTRIES: usize = 200;
/// The longest part of a mistaken entry that an error shows, in characters.
const MAX_SHOWN: usize = 100;
/// What a line of text begins with that distrusts a CA.
const LINE: &str = "distrust:";

/// SHA-256 of a CA certificate's DER, in lower case without colons.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(String);

/// The CA certificates that are distrusted.
pub type Distrusted = BTreeSet<Fingerprint>;

/// An entry that is no SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{entry:?} is no SHA-256 of a CA certificate, 64 hexadecimal digits with or without colons; take what `openssl x509 \
     -fingerprint -sha256 -noout -in ca.pem` prints after \"=\""
)]
pub struct NoFingerprint {
    /// The entry, or its beginning.
    entry: String,
}

/// Why a list of distrusted CAs can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DistrustError {
    /// An entry is no SHA-256.
    #[error("the bundle distrusts what is no CA: {0}")]
    NoFingerprint(NoFingerprint),
    /// More distrusted CAs than anybody has.
    #[error("the bundle distrusts more than {most} CAs; leave out the CAs that are no longer among its certificates")]
    TooMany {
        /// How many are read.
        most: usize,
    },
}

impl Fingerprint {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let pairs = || text.split(':').all(|pair| pair.len() == 2);
        let digits = if text.contains(':') && pairs() { text.replace(':', "") } else { text.to_owned() };
        if digits.len() != DIGITS || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NoFingerprint { entry: text.chars().take(MAX_SHOWN).collect() });
        }
        Ok(Self(digits.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NoFingerprint;

    fn try_from(text: String) -> Result<Self, NoFingerprint> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Reads the entries of a list.
pub(crate) fn read<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Distrusted, DistrustError> {
    let mut distrusted = Distrusted::new();
    for entry in entries {
        distrusted.insert(entry.parse().map_err(DistrustError::NoFingerprint)?);
        if distrusted.len() > MAX_ENTRIES {
            return Err(DistrustError::TooMany { most: MAX_ENTRIES });
        }
    }
    Ok(distrusted)
}

/// Reads the lines `distrust: SHA256` of a text. They stand between the blocks of a bundle, where other text is comment.
pub(crate) fn in_text(text: &[u8]) -> Result<Distrusted, DistrustError> {
    let text = String::from_utf8_lossy(text);
    read(text.lines().filter_map(|line| line.trim().strip_prefix(LINE)).map(str::trim))
}

/// The text that [`in_text`] reads.
pub(crate) fn to_text(distrusted: &Distrusted) -> String {
    distrusted.iter().flat_map(|fingerprint| [LINE, " ", fingerprint.as_str(), "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `openssl x509 -fingerprint -sha256` prints after "=".
    const PRINTED: &str =
        "9F:0A:B1:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE";

    #[test]
    fn a_fingerprint_is_read_as_openssl_prints_it_and_as_the_status_shows_it() {
        let plain = PRINTED.replace(':', "").to_lowercase();
        for text in [PRINTED, &PRINTED.to_lowercase(), &PRINTED.replace(':', ""), &plain] {
            assert_eq!(text.parse::<Fingerprint>().unwrap().as_str(), plain, "{text}");
        }
    }

    #[test]
    fn whatever_else_an_entry_is_the_error_names_it() {
        let plain = PRINTED.replace(':', "");
        for text in ["", "ca", "CN=old", &plain[1..], &format!("{plain}0"), &PRINTED[1..], &format!("g{}", &plain[1..])]
        {
            let error = text.parse::<Fingerprint>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        for text in [PRINTED.replacen(':', "", 1), PRINTED.replacen(':', "::", 1), format!("{PRINTED}:")] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
        let long = "é".repeat(5_000).parse::<Fingerprint>().unwrap_err().to_string();
        assert!(long.len() < 500, "{long}");
    }

    #[test]
    fn a_text_distrusts_by_line_and_is_read_back() {
        let known =
            in_text(format!("# ours\n\n  distrust: {PRINTED}\r\n# distrust: CN=commented\n").as_bytes()).unwrap();
        assert_eq!(known.len(), 1);
        assert_eq!(in_text(to_text(&known).as_bytes()).unwrap(), known);
        assert!(in_text(b"distrust: CN=old\n").unwrap_err().to_string().contains("\"CN=old\""));
        let many: Vec<_> = (0..=MAX_ENTRIES).map(|number| format!("distrust: {number:064x}")).collect();
        let many = many.join("\n");
        assert!(matches!(in_text(many.as_bytes()), Err(DistrustError::TooMany { .. })));
    }
}
