//! Answers on standard output, to a person or a program.

use std::io::{IsTerminal, Write};

/// The output can't be written.
#[derive(Debug, thiserror::Error)]
#[error("could not write to standard output")]
pub struct OutputError(#[source] pub std::io::Error);

/// The number of hexadecimal digits by which a person distinguishes digests.
pub(crate) const DIGITS: usize = 12;

/// The text with each complete SHA-256 digest (`sha256:…`) cut to its first digits.
#[must_use]
pub(crate) fn abbreviated(text: &str) -> String {
    const MARK: &str = "sha256:";
    let mut parts = text.split(MARK);
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        short.push_str(MARK);
        let digits = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits == 64 {
            short.push_str(&part[..DIGITS]);
            short.push('…');
            short.push_str(&part[digits..]);
        } else {
            short.push_str(part);
        }
    }
    short
}

/// Writes to standard output. A reader that closed the pipe is no error.
pub fn print(text: &str) -> Result<(), OutputError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(OutputError(error)),
        _ => Ok(()),
    }
}

/// Writes a value as one JSON document.
pub(crate) fn print_json<T: serde::Serialize>(value: &T) -> Result<(), OutputError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| OutputError(error.into()))?;
    text.push('\n');
    print(&text)
}

/// Colours, for a terminal whose user wants colours (<https://no-color.org>).
#[derive(Clone, Copy, Debug)]
pub struct Paint(pub(crate) bool);

impl Paint {
    /// The colours of standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self::on(&std::io::stdout())
    }

    /// The colours of standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self::on(&std::io::stderr())
    }

    fn on(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(stream.is_terminal() && !refused)
    }

    /// Whether colours are on.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.0
    }

    /// Colours a text about success.
    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Colours a text about a warning.
    #[must_use]
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Colours a text about a failure.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_digest_is_cut_and_anything_else_stays() {
        let [ours, theirs] = ["0123456789abcdef", "fedcba9876543210"].map(|digits| digits.repeat(4));
        let text = format!("the loaded configuration is sha256:{theirs}, not sha256:{ours}");
        let short = "the loaded configuration is sha256:fedcba987654…, not sha256:0123456789ab…";
        assert_eq!(abbreviated(&text), short);
        for stays in ["", "healthy", "sha256:", "sha256:0123456789ab…", &format!("sha256:{ours}0"), &ours] {
            assert_eq!(abbreviated(stays), stays);
        }
    }
}
