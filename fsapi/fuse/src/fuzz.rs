//! Random bytes as requests: nothing panics, and what can be answered is answered exactly once and well-formed.

use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::abi::InHeader;
use crate::testing::converse;

/// One message: mostly a known opcode and a true length, with arguments that are sometimes almost right.
fn message() -> impl Strategy<Value = (InHeader, Vec<u8>)> {
    let opcode = prop_oneof![9 => 1u32..54, 1 => any::<u32>()];
    let small = prop_oneof![Just(0u8), Just(1u8), Just(b'a'), any::<u8>()];
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(small, 0..200),
        (prop::collection::vec(Just(0u8), 0..90), "[a-c./]{0,4}\0[a-c]{1,300}\0").prop_map(|(fixed, names)| [
            &fixed[..],
            names.as_bytes()
        ]
        .concat()),
    ];
    let len_error = prop_oneof![20 => Just(0i64), 1 => -50i64..50];
    (opcode, any::<u64>(), any::<u64>(), body, len_error, prop_oneof![9 => Just(0u16), 1 => any::<u16>()]).prop_map(
        |(opcode, unique, nodeid, body, len_error, total_extlen)| {
            let len = (size_of::<InHeader>() + body.len()) as i64 + len_error;
            let header = InHeader { len: len as u32, opcode, unique, nodeid, total_extlen, ..InHeader::default() };
            (header, body)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_are_answered_once(messages in prop::collection::vec(message(), 1..30)) {
        let whole = |(header, body): &(InHeader, Vec<u8>)| [header.as_bytes(), body].concat();
        converse(&messages.iter().map(whole).collect::<Vec<_>>());
    }
}
