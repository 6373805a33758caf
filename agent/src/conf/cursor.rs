//! A position in a text, with its line.

/// Reads a text character by character.
pub(super) struct Cursor<'a> {
    text: &'a str,
    position: usize,
    line: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, position: 0, line: 1 }
    }

    /// The line of the next character, counted from 1. nats-server counts line feeds alone, and so does the cursor.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn rest(&self) -> &'a str {
        self.text.get(self.position..).unwrap_or_default()
    }

    /// The text from an earlier rest up to the position.
    pub(super) fn since(&self, before: &'a str) -> &'a str {
        before.get(..before.len().saturating_sub(self.rest().len())).unwrap_or_default()
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.position += character.len_utf8();
        self.line += usize::from(character == '\n');
        Some(character)
    }

    /// Moves past the next character if it is the expected character.
    pub(super) fn take(&mut self, expected: char) -> bool {
        let taken = self.peek() == Some(expected);
        if taken {
            self.next();
        }
        taken
    }

    /// Moves on while `skip` is true, and returns the text between.
    pub(super) fn take_while(&mut self, skip: impl Fn(char) -> bool) -> &'a str {
        let before = self.rest();
        while self.peek().is_some_and(&skip) {
            self.next();
        }
        self.since(before)
    }

    pub(super) fn skip_blanks(&mut self) {
        self.take_while(is_blank);
    }

    /// Moves `length` bytes on.
    pub(super) fn advance(&mut self, length: usize) {
        let passed = self.rest().get(..length).unwrap_or_default();
        self.line += passed.bytes().filter(|byte| *byte == b'\n').count();
        self.position += passed.len();
    }

    /// Whether a comment begins here.
    pub(super) fn is_at_comment(&self) -> bool {
        self.rest().starts_with('#') || self.rest().starts_with("//")
    }
}

/// A blank of nats-server's language.
pub(super) fn is_blank(character: char) -> bool {
    character == ' ' || character == '\t'
}

/// A line end of nats-server's language.
pub(super) fn is_line_end(character: char) -> bool {
    character == '\n' || character == '\r'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_by_line_feeds() {
        let mut cursor = Cursor::new("é\r\nb\n\nc");
        assert_eq!((cursor.take_while(|c| c != 'c'), cursor.line(), cursor.rest()), ("é\r\nb\n\n", 4, "c"));
        let mut cursor = Cursor::new("é\r\nb\n\nc");
        cursor.advance(6);
        assert_eq!((cursor.line(), cursor.rest()), (3, "\nc"));
        cursor.advance(100);
        assert_eq!(cursor.rest(), "\nc");
    }
}
