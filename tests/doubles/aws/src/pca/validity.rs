//! The end of a certificate's validity.

use time::{Date, Duration, Month, OffsetDateTime, PrimitiveDateTime, Time};

use super::validation;
use crate::ServiceError;

/// `Validity` of a request
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_Validity.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// A UTCTime (`YYMMDDHHMMSS`) or GeneralizedTime (`YYYYMMDDHHMMSS`) as a number. Two-digit years from 50 on belong
    /// to the last century.
    EndDate(i64),
    /// A time in Unix seconds.
    Absolute(i64),
    /// Days from the moment of issuance.
    Days(i64),
    /// Calendar months from the moment of issuance.
    Months(i64),
    /// Calendar years from the moment of issuance.
    Years(i64),
}

impl Validity {
    /// Parses `Type` and `Value` of the API.
    #[must_use]
    pub fn parse(kind: &str, value: i64) -> Option<Self> {
        Some(match kind {
            "END_DATE" => Self::EndDate(value),
            "ABSOLUTE" => Self::Absolute(value),
            "DAYS" => Self::Days(value),
            "MONTHS" => Self::Months(value),
            "YEARS" => Self::Years(value),
            _ => return None,
        })
    }
}

/// The end of a certificate that is issued at `now`, in whole seconds. "The minimum validity duration for a certificate
/// using relative time (DAYS) is one day. The minimum validity for a certificate using absolute time (ABSOLUTE or
/// END_DATE) is one second" (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_Validity.html>).
pub(super) fn end(validity: Validity, now: OffsetDateTime) -> Result<OffsetDateTime, ServiceError> {
    let now = now.replace_nanosecond(0).unwrap_or(now);
    let relative = |value: i64| if value >= 1 { Ok(value) } else { Err(validation("the value must be at least 1")) };
    let out_of_range = || validation("the validity is out of range");
    let end = match validity {
        Validity::EndDate(value) => end_date(value).ok_or_else(|| validation("the value is not an END_DATE"))?,
        Validity::Absolute(seconds) => OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| out_of_range())?,
        Validity::Days(days) => {
            let length = relative(days)?.checked_mul(86_400).map(Duration::seconds).ok_or_else(out_of_range)?;
            now.checked_add(length).ok_or_else(out_of_range)?
        }
        Validity::Months(months) => add_months(now, relative(months)?).ok_or_else(out_of_range)?,
        Validity::Years(years) => {
            relative(years)?.checked_mul(12).and_then(|months| add_months(now, months)).ok_or_else(out_of_range)?
        }
    };
    if end < now + Duration::seconds(1) { Err(validation("the validity has ended already")) } else { Ok(end) }
}

fn end_date(value: i64) -> Option<OffsetDateTime> {
    let (clock, date) = (value % 1_000_000, value / 1_000_000);
    let (year, month, day) = (date / 10_000, date / 100 % 100, date % 100);
    let year = match year {
        0..50 => year + 2000,
        50..100 => year + 1900,
        _ => year,
    };
    let small = |number: i64| u8::try_from(number).ok();
    let date = Date::from_calendar_date(i32::try_from(year).ok()?, Month::try_from(small(month)?).ok()?, small(day)?);
    let time = Time::from_hms(small(clock / 10_000)?, small(clock / 100 % 100)?, small(clock % 100)?);
    Some(PrimitiveDateTime::new(date.ok()?, time.ok()?).assume_utc())
}

/// The same day of a later month, or the last day of that month.
fn add_months(now: OffsetDateTime, months: i64) -> Option<OffsetDateTime> {
    let sum = i64::from(now.year()) * 12 + i64::from(u8::from(now.month())) - 1;
    let sum = sum.checked_add(months)?;
    let year = i32::try_from(sum.div_euclid(12)).ok()?;
    let month = Month::try_from(u8::try_from(sum.rem_euclid(12) + 1).ok()?).ok()?;
    let day = now.day().min(month.length(year));
    Some(now.replace_date(Date::from_calendar_date(year, month, day).ok()?))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-31 12:34:56.789 UTC);

    #[test]
    fn each_type_says_when_a_certificate_ends_as_the_documentations_samples_do() {
        for (validity, expected) in [
            (Validity::EndDate(491_231_235_959), datetime!(2049-12-31 23:59:59 UTC)),
            (Validity::EndDate(20_260_201_000_000), datetime!(2026-02-01 00:00:00 UTC)),
            (Validity::Absolute(2_524_608_000), datetime!(2050-01-01 00:00:00 UTC)),
            (Validity::Days(90), datetime!(2026-05-01 12:34:56 UTC)),
            (Validity::Months(1), datetime!(2026-02-28 12:34:56 UTC)),
            (Validity::Months(11), datetime!(2026-12-31 12:34:56 UTC)),
            (Validity::Years(2), datetime!(2028-01-31 12:34:56 UTC)),
        ] {
            assert_eq!(end(validity, NOW).unwrap(), expected, "{validity:?}");
        }
    }

    #[test]
    fn an_end_that_has_passed_or_is_none_is_refused() {
        for validity in [
            Validity::EndDate(501_231_235_959),
            Validity::EndDate(20_261_301_000_000),
            Validity::Absolute(NOW.unix_timestamp()),
            Validity::Days(0),
            Validity::Days(i64::MAX),
            Validity::Months(i64::MAX),
            Validity::Years(-1),
        ] {
            assert_eq!(end(validity, NOW).unwrap_err().code, "ValidationException", "{validity:?}");
        }
        end(Validity::Absolute(NOW.unix_timestamp() + 1), NOW).unwrap();
    }

    #[test]
    fn types_have_the_names_of_the_api() {
        assert_eq!(Validity::parse("END_DATE", 1), Some(Validity::EndDate(1)));
        assert_eq!(Validity::parse("MONTHS", 1), Some(Validity::Months(1)));
        assert_eq!(Validity::parse("WEEKS", 1), None);
    }
}
