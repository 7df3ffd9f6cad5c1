//! The tables of `docs/FORMAT.md` as a decoder: what a table says of offset, size and type is read from a sample and
//! compared with what the code put there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vellum_base::Key;

pub type Row = Vec<String>;

pub struct Table {
    /// "40" of "Table `block header`, 40 bytes."
    pub len: Option<usize>,
    pub rows: Vec<Row>,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn document() -> String {
    std::fs::read_to_string(root().join("docs/FORMAT.md")).expect("docs/FORMAT.md")
}

/// All announced tables by name.
pub fn tables() -> BTreeMap<String, Table> {
    let text = document();
    let mut out = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some((name, rest)) = line.strip_prefix("Table `").and_then(|rest| rest.split_once('`')) else { continue };
        let len = rest.strip_prefix(", ").and_then(|r| r.split_once(" bytes")).and_then(|(n, _)| n.parse().ok());
        let rows = lines
            .by_ref()
            .skip_while(|l| !l.starts_with('|'))
            .take_while(|l| l.starts_with('|'))
            .skip(2)
            .map(|l| l.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_string()).collect())
            .collect();
        assert!(out.insert(name.to_string(), Table { len, rows }).is_none(), "two tables `{name}`");
    }
    out
}

pub fn table(name: &str) -> Table {
    tables().remove(name).unwrap_or_else(|| panic!("docs/FORMAT.md has no table `{name}`"))
}

#[derive(Debug, Clone)]
pub enum Want {
    Int(i128),
    Bytes(Vec<u8>),
}

pub fn int(value: impl Into<i128>) -> Want {
    Want::Int(value.into())
}

pub fn raw(value: &[u8]) -> Want {
    Want::Bytes(value.to_vec())
}

/// `A`, `Bn`, `A + Bn` with the sample's n.
fn eval(text: &str, n: usize) -> Option<usize> {
    text.split('+').try_fold(0, |sum, term| {
        let term = term.trim();
        let value = match term.strip_suffix('n') {
            Some("") => n,
            Some(times) => times.parse::<usize>().ok()? * n,
            None => term.parse().ok()?,
        };
        Some(sum + value)
    })
}

pub fn parse_int(text: &str) -> i128 {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(&hex.replace('_', ""), 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn le(bytes: &[u8]) -> i128 {
    bytes.iter().rev().fold(0, |acc, b| acc << 8 | i128::from(*b))
}

pub fn read(kind: &str, bytes: &[u8], place: &str) -> Want {
    let size = match kind {
        "u8" => 1,
        "u16" => 2,
        "u32" => 4,
        "u64" | "i64" | "u64 BE" | "place" => 8,
        "range" | "time" => 12,
        "key" => Key::LEN,
        "bytes" => bytes.len(),
        other => panic!("{place}: type {other:?} is not known"),
    };
    assert_eq!(bytes.len(), size, "{place}: a {kind} has another size");
    match kind {
        "u8" | "u16" | "u32" | "u64" => Want::Int(le(bytes)),
        "i64" => Want::Int(i128::from(le(bytes) as u64 as i64)),
        "u64 BE" => Want::Int(bytes.iter().fold(0, |acc, b| acc << 8 | i128::from(*b))),
        _ => Want::Bytes(bytes.to_vec()),
    }
}

/// Decodes `sample` by the table and finds exactly the fields of `want`, in any order.
pub fn check(name: &str, n: usize, sample: &[u8], want: &[(&str, Want)]) {
    let table = table(name);
    if let Some(len) = table.len {
        assert_eq!(sample.len(), len, "table `{name}` says another length");
    }
    let mut at = 0;
    for row in &table.rows {
        let (field, place) = (&row[3], format!("table `{name}`, field {}", row[3]));
        assert_eq!(eval(&row[0], n), Some(at), "{place}: offset {:?}", row[0]);
        let size = if row[1] == "rest" { sample.len() - at } else { eval(&row[1], n).expect("a size") };
        let bytes = sample.get(at..at + size).unwrap_or_else(|| panic!("{place} ends after the structure"));
        let found = read(&row[2], bytes, &place);
        let expected = want.iter().find(|(f, _)| f == field).unwrap_or_else(|| panic!("{place} is not in the code"));
        let same = match (&found, &expected.1) {
            (Want::Int(a), Want::Int(b)) => a == b,
            (Want::Bytes(a), Want::Bytes(b)) => a == b,
            _ => false,
        };
        assert!(same, "{place}: {found:x?} where the code wrote {:x?}", expected.1);
        at += size;
    }
    assert_eq!(at, sample.len(), "table `{name}` ends early");
    assert_eq!(table.rows.len(), want.len(), "table `{name}` has other fields than the code");
}

/// Codes in the first column, names in the second.
pub fn check_codes(name: &str, want: &[(i128, String)]) {
    let found: Vec<(i128, String)> = table(name).rows.iter().map(|r| (parse_int(&r[0]), r[1].clone())).collect();
    assert_eq!(found, want, "table `{name}`");
}

pub fn range(start: u64, len: u32) -> Want {
    Want::Bytes([&start.to_le_bytes()[..], &len.to_le_bytes()].concat())
}

pub fn u32s(list: impl IntoIterator<Item = u32>) -> Want {
    Want::Bytes(list.into_iter().flat_map(u32::to_le_bytes).collect())
}
