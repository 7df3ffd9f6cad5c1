//! Sizes as people write them.

/// "64M", "1GiB", "4096": binary units whatever the suffix. For clap.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{unit:?} is no unit; use K, M, G or T")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no size; write for example 64M or 10G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is larger than any device"))
}

/// "1.5 GiB": three significant digits.
pub fn show(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in [("4096", 4096), ("64M", 64 << 20), ("1GiB", 1 << 30), ("2 tb", 2 << 40), ("1k", 1024)] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "12q", "99999999T", "-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(show(1 << 30), "1.0 GiB");
        assert_eq!(show(100), "100 B");
    }
}
