//! Durations as people write them.

use std::time::Duration;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// How often something begins by itself; none for never.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Every(pub Option<Duration>);

/// "7d", "12h", "2w" or "never". For clap.
pub fn parse_every(text: &str) -> Result<Every, String> {
    let text = text.trim();
    if text == "never" {
        return Ok(Every(None));
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_s = match unit {
        "h" => HOUR,
        "d" => DAY,
        "w" => 7 * DAY,
        _ => return Err(format!("{text:?} is no interval; write for example 12h, 30d, 4w, or never")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no interval; write for example 12h or 30d"))?;
    match number.checked_mul(unit_s) {
        Some(secs @ HOUR..=315_360_000) => Ok(Every(Some(Duration::from_secs(secs)))),
        _ => Err(format!("{text:?}: an interval is one hour at least and ten years at most")),
    }
}

/// "26 days", "3 hours": whole numbers of the largest unit of which there are two at least.
pub fn show(secs: u64) -> String {
    for (unit, unit_s) in [("days", DAY), ("hours", HOUR), ("minutes", 60)] {
        if secs >= 2 * unit_s {
            return format!("{} {unit}", secs / unit_s);
        }
    }
    format!("{secs} seconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_and_shown() {
        let days = |n| Ok(Every(Some(Duration::from_secs(n * DAY))));
        assert_eq!((parse_every("30d"), parse_every(" 4w "), parse_every("48h")), (days(30), days(28), days(2)));
        assert_eq!(parse_every("never"), Ok(Every(None)));
        for bad in ["", "7", "d", "0h", "7y", "-1d", "4000d", "99999999999999999999d", "1.5d"] {
            let error = parse_every(bad).unwrap_err();
            assert!(error.contains("interval"), "{bad}: {error}");
        }
        assert_eq!(
            (show(26 * DAY + 5), show(2 * HOUR), show(119)),
            ("26 days".into(), "2 hours".into(), "119 seconds".into())
        );
    }
}
