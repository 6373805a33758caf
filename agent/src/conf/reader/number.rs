//! Unquoted values that begin with a digit or a minus: integers with units, fractions, dates, addresses and texts.

use super::{ConfError, Fault, Parser};
use crate::conf::cursor::{is_blank, is_line_end};
use crate::conf::tree::Value;

/// The length of `2006-01-02T15:04:05Z`.
const DATE_LENGTH: usize = 20;

impl Parser<'_, '_> {
    pub(super) fn number(&mut self) -> Result<Value, ConfError> {
        let written = self.cursor.rest();
        let is_negative = self.cursor.take('-');
        let before_digits = self.cursor.rest();
        if self.cursor.take_while(|c| c.is_ascii_digit()).is_empty() {
            return Err(self.wrong(Fault::Number));
        }
        let digits = self.cursor.since(before_digits).len();
        match self.cursor.peek() {
            Some('.') => self.fraction(written),
            Some('-') if !is_negative => {
                let Some(date) = written.get(..DATE_LENGTH).filter(|date| digits == 4 && is_date(date)) else {
                    return Err(self.wrong(Fault::Number));
                };
                self.cursor.advance(DATE_LENGTH - digits);
                Ok(Value::Date(date.to_owned()))
            }
            Some(unit) if "kmgtpeKMGTPE".contains(unit) => self.unit(written),
            end if is_negative || ends_a_number(end) => self.integer(self.cursor.since(written), ""),
            Some(']') => Err(self.wrong(Fault::NumberBeforeBracket)),
            _ => self.text_from(written),
        }
    }

    fn fraction(&mut self, written: &str) -> Result<Value, ConfError> {
        self.cursor.next();
        if self.cursor.take_while(|c| c.is_ascii_digit()).is_empty() {
            return Err(self.wrong(Fault::Number));
        }
        if self.cursor.peek() == Some('.') {
            // nats-server takes a second point for the sign of an address.
            self.cursor.take_while(|c| c.is_ascii_digit() || ".:-".contains(c));
            let length = written.len() - self.cursor.rest().len();
            return Ok(Value::text(written.get(..length).unwrap_or_default()));
        }
        let length = written.len() - self.cursor.rest().len();
        match written.get(..length).unwrap_or_default().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Value::Float(number)),
            _ => Err(self.wrong(Fault::NumberTooLarge)),
        }
    }

    /// Reads a unit and what follows it. nats-server reads `5kx` as a text.
    fn unit(&mut self, written: &str) -> Result<Value, ConfError> {
        let before_unit = self.cursor.rest();
        self.cursor.next();
        self.cursor.take_while(|c| "bBiI".contains(c));
        match self.cursor.peek() {
            Some(c) if c.is_numeric() => Err(self.wrong(Fault::DigitAfterUnit)),
            Some(']') => Err(self.wrong(Fault::NumberBeforeBracket)),
            end if ends_a_number(end) => {
                let unit = self.cursor.since(before_unit);
                self.integer(written.get(..written.len() - before_unit.len()).unwrap_or_default(), unit)
            }
            _ => self.text_from(written),
        }
    }

    fn integer(&mut self, number: &str, unit: &str) -> Result<Value, ConfError> {
        let unit = unit.to_ascii_lowercase();
        let mut letters = unit.chars();
        let power = match letters.next() {
            None => 0,
            Some('k') => 1,
            Some('m') => 2,
            Some('g') => 3,
            Some('t') => 4,
            Some('p') => 5,
            Some(_) => 6,
        };
        let base: i64 = match letters.as_str() {
            "" => 1000,
            "b" | "i" | "ib" => 1024,
            _ => return Err(self.wrong(Fault::Unit)),
        };
        // nats-server's multiplication wraps around.
        let value = number.parse::<i64>().ok().and_then(|number| number.checked_mul(base.pow(power)));
        value.map(Value::Integer).ok_or_else(|| self.wrong(Fault::NumberTooLarge))
    }

    /// Reads the rest of a text that begins with digits.
    fn text_from(&mut self, written: &str) -> Result<Value, ConfError> {
        let text = self.cursor.take_while(|c| !is_line_end(c) && !is_blank(c) && !";,]}\\\"'".contains(c));
        if let Some(odd) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(self.wrong(Fault::InValue(odd)));
        }
        // nats-server takes the character after the digits without a check, even a quote or a backslash.
        if let Some(odd @ ('\\' | '"' | '\'')) = self.cursor.peek() {
            return Err(self.wrong(Fault::InValue(odd)));
        }
        let length = written.len() - self.cursor.rest().len();
        let text = written.get(..length).unwrap_or_default();
        if text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
            return Err(self.wrong(Fault::ForeignDigit));
        }
        Ok(Value::text(text))
    }
}

/// Whether nats-server ends a positive integer here.
fn ends_a_number(next: Option<char>) -> bool {
    next.is_none_or(|c| is_line_end(c) || is_blank(c) || "};,".contains(c))
}

/// Whether the text is a date of the calendar, `YYYY-MM-DDTHH:MM:SSZ`, as Go's `time.Parse` accepts it.
fn is_date(text: &str) -> bool {
    let has_form = text
        .bytes()
        .zip(b"0000-00-00T00:00:00Z")
        .all(|(found, expected)| if *expected == b'0' { found.is_ascii_digit() } else { found == *expected });
    let field = |range: std::ops::Range<usize>| text.get(range).and_then(|digits| digits.parse::<u16>().ok());
    let fields = [field(0..4), field(5..7), field(8..10), field(11..13), field(14..16), field(17..19)];
    let [Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)] = fields else { return false };
    let days = match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    has_form && (1..=12).contains(&month) && (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60
}
