//! What must have a test of a certain kind has one, by name: decoders a fuzz target, scenarios a test.

mod sources;

use std::collections::BTreeSet;

use sources::all;

/// Crates that take in bytes that are not theirs. `net/proto` and `net/link` hand them on.
const DECODING: &[&str] = &[
    "engine/format/src",
    "engine/store/src",
    "engine/rt/src/net",
    "engine/server/src",
    "net/wire/src",
    "net/keys/src",
    "nvme/src",
    "fsapi",
];

/// Decoders that no target names, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("ManifestEdit::decode", "within ManifestRecord::decode"),
    ("Run::decode", "within ManifestRecord::decode"),
    ("ManifestRecord::decode_body", "within ManifestRecord::decode"),
    ("Seal::decode_body", "within Seal::decode"),
    ("Superblock::decode_body", "within Superblock::decode"),
    ("QuorumKey::load", "within Keys::load"),
    ("Current::load", "within Keys::load"),
    ("decode_record", "within log::records"),
    ("decode_sector", "within SlotBlock::decode"),
    ("Entries::decode", "the target has it in a variable"),
    ("Entries::parse", "within Entries::decode"),
    ("Entries::parse_inner", "within Entries::decode"),
    ("Name::from_str", "within Subject"),
    ("PciAddress::from_str", "within DeviceSpec::parse"),
    ("EmuSpec::parse", "within DeviceSpec::parse"),
    ("parse_size", "within DeviceSpec::parse"),
    ("Mapped::decode", "Extent::decode, and a key"),
    ("Acl::decode", "private: fsapi/vfs/src/acl.rs has a test of its own"),
    ("Message::parse", "vfio-user: within the sessions of the targets vfio-user-client and vfio-user-server"),
    ("parse", "the kernel's list of mounts: fsapi/fuse/src/mount/point.rs"),
];

fn is_decoder(name: &str) -> bool {
    ["decode", "parse", "from_str"].iter().any(|word| name == *word || name.starts_with(&format!("{word}_")))
}

/// `Type::function` of each, or the function alone.
fn decoders(text: &str, is_decoder: impl Fn(&str) -> bool) -> Vec<String> {
    let (mut of, mut out) = (String::new(), Vec::new());
    for line in text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")) {
        if let Some(rest) = line.strip_prefix("impl") {
            let rest = rest.rsplit(" for ").next().unwrap_or(rest);
            let rest = rest.strip_prefix('<').map_or(rest, |rest| rest.split_once("> ").map_or("", |(_, rest)| rest));
            of = rest.trim().chars().take_while(|c| c.is_alphanumeric()).collect();
        } else if line.starts_with('}') {
            of.clear();
        }
        let code = line.trim_start();
        let Some((before, after)) = code.split_once("fn ") else { continue };
        if !before.split_whitespace().all(|word| word.starts_with("pub") || word == "async" || word == "const") {
            continue;
        }
        let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if is_decoder(&name) {
            out.push(if of.is_empty() { name } else { format!("{of}::{name}") });
        }
    }
    out
}

#[test]
fn every_decoder_has_a_fuzz_target() {
    let targets: String = all(&["tools/fuzz/src"]).into_iter().map(|(_, text)| text).collect();
    let (mut found, mut missing) = (0, Vec::new());
    for (path, text) in all(DECODING) {
        if path.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        // Key files are loaded.
        let keys = path.to_string_lossy().contains("net/keys");
        for decoder in decoders(&text, |name| is_decoder(name) || keys && name == "load") {
            found += 1;
            let by_turbofish = decoder.strip_suffix("::from_str").map(|of| format!("parse::<{of}>"));
            let named = targets.contains(&decoder) || by_turbofish.is_some_and(|call| targets.contains(&call));
            if !named && !ELSEWHERE.iter().any(|(name, _)| *name == decoder) {
                missing.push(format!("{decoder} ({})", path.display()));
            }
        }
    }
    assert!(found > 40, "{found} decoders: they are not found any more");
    assert!(missing.is_empty(), "no target in tools/fuzz names {missing:#?}");
}

/// The scenarios of docs/TESTING.md that are about epochs, logs, space, compaction and media. 49 is about staging and
/// releasing, which is not there yet.
#[test]
fn every_scenario_has_a_test_that_says_its_number() {
    let mut tests = BTreeSet::new();
    for (_, text) in all(&["engine", "fsapi", "net", "nvme", "tools/vellum"]) {
        let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
        tests.extend(names.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned()));
    }
    let said = |start: String, part: String| {
        tests.iter().any(|name| name.starts_with(&start) || name.contains(&format!("{part}_")) || name.ends_with(&part))
    };
    let epochs = (1..=10).map(|n| (format!("E{n}"), said(format!("e{n}_"), format!("scenario_e{n}"))));
    let others = (36..=53).filter(|n| *n != 49);
    let others = others.map(|n| (n.to_string(), said(format!("s{n}_"), format!("scenario_{n}"))));
    let missing: Vec<String> = epochs.chain(others).filter(|(_, found)| !found).map(|(number, _)| number).collect();
    assert!(missing.is_empty(), "no test is named for {missing:?}");
}
