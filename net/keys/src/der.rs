//! The two dates of a certificate. The rest of it is read by rustls; these are for people who ask when it ends.

use std::ops::RangeInclusive;

/// In seconds of the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub not_before: i64,
    pub not_after: i64,
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// One element: its tag, its content, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let len = match first {
        0..=0x7f => usize::from(first),
        0x81..=0x83 => {
            let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            digits.iter().fold(0, |len, digit| (len << 8) | usize::from(*digit))
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    element(bytes).and_then(|(tag, content, rest)| (tag == wanted).then_some((content, rest)))
}

/// Of a DER certificate (RFC 5280, 4.1); none when it is none.
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (mut fields, _) = expect(certificate, SEQUENCE)?;
    if let Some((_, rest)) = expect(fields, VERSION) {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        (_, _, fields) = element(fields)?;
    }
    let (dates, _) = expect(fields, SEQUENCE)?;
    let (tag, text, dates) = element(dates)?;
    let not_before = time(tag, text)?;
    let (tag, text, _) = element(dates)?;
    Some(Validity { not_before, not_after: time(tag, text)? })
}

fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |range: std::ops::Range<usize>, legal: RangeInclusive<i64>| {
        let value = digits.get(range)?.iter().fold(0i64, |n, d| n * 10 + i64::from(d - b'0'));
        legal.contains(&value).then_some(value)
    };
    let (year, at) = match (tag, digits.len()) {
        (UTC_TIME, 12) => match number(0..2, 0..=99)? {
            year @ 50.. => (1900 + year, 2),
            year => (2000 + year, 2),
        },
        (GENERALIZED_TIME, 14) => (number(0..4, 0..=9999)?, 4),
        _ => return None,
    };
    let month = number(at..at + 2, 1..=12)?;
    let day = number(at + 2..at + 4, 1..=31)?;
    let hour = number(at + 4..at + 6, 0..=23)?;
    let minute = number(at + 6..at + 8, 0..=59)?;
    let second = number(at + 8..at + 10, 0..=60)?;
    Some(days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Of a proleptic Gregorian date; years begin in March, so that the leap day is a year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, month) = (year.div_euclid(400), (month + 9) % 12);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, tag, seconds) in [
            (&b"700101000000Z"[..], UTC_TIME, 0),
            (b"491231235959Z", UTC_TIME, 2_524_607_999),
            (b"500101000000Z", UTC_TIME, -631_152_000),
            (b"20240229120000Z", GENERALIZED_TIME, 1_709_208_000),
            (b"20500101000000Z", GENERALIZED_TIME, 2_524_608_000),
        ] {
            assert_eq!(time(tag, text), Some(seconds), "{}", String::from_utf8_lossy(text));
        }
        for text in [&b"700101000000"[..], b"701301000000Z", b"7001010000Z", b"-00101000000Z", b""] {
            assert_eq!(time(UTC_TIME, text), None);
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_certificate_are_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = validity(&bytes);
        }
    }
}
