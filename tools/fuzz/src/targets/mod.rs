//! Every target: what decodes, and what must hold of what it accepts.

use bytes::Bytes;
use vellum_base::crc32c;
use vellum_base::prng::Prng;
use vellum_format::ClientIdentity;
use vellum_keys::{QuorumKey, Subject, certificate_subject, validity};
use vellum_wire::quorum::{DATAGRAM_LEN, DatagramAuth, NoAuth, QuorumDatagram};
use vellum_wire::{Frame, FrameHeader, Greeted, Greeting, HEADER_LEN, Refusal, Request, Response};

mod disk;
mod driver;
mod items;
mod jobs;
mod keys;
mod nvme;
mod requests;
mod text;
mod vfio_user;

use crate::mutate::mutate;
use crate::{image, samples};

#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub samples: fn() -> Vec<Vec<u8>>,
    /// The next input, from samples.
    pub draw: fn(&mut Prng, &[Vec<u8>]) -> Vec<u8>,
    /// True when the bytes were accepted. Panics when something does not hold.
    pub check: fn(&[u8]) -> bool,
    /// Where a checksum is around all of it: whether the bytes are accepted as they came. `check` puts checksums right.
    pub verify: Option<fn(&[u8]) -> bool>,
    /// Bytes of memory that one input may take.
    pub memory_bytes: usize,
    /// Inputs of a run in the gate: seconds.
    pub gate_inputs: u64,
}

/// Of a decoder: some times what it was given, and what it sets up for itself.
const DECODER_BYTES: usize = 2 << 20;

const fn summed(
    name: &'static str,
    samples: fn() -> Vec<Vec<u8>>,
    check: fn(&[u8]) -> bool,
    verify: fn(&[u8]) -> bool,
) -> Target {
    Target { verify: Some(verify), ..decoder(name, samples, check) }
}

const IMAGE_BYTES: usize = 512 << 20;

const fn decoder(name: &'static str, samples: fn() -> Vec<Vec<u8>>, check: fn(&[u8]) -> bool) -> Target {
    Target { name, samples, draw: mutate, check, verify: None, memory_bytes: DECODER_BYTES, gate_inputs: 20_000 }
}

pub const TARGETS: &[Target] = &[
    summed("frame", samples::frames, frame, frame),
    decoder("request", requests, request),
    decoder("response", responses, response),
    decoder("greeting", greetings, greeting),
    decoder("greeted", greeted, check_greeted),
    decoder("refusal", refusals, refusal),
    summed("datagram", samples::plain_datagrams, datagram, whole_datagram),
    summed("sealed-datagram", sealed_datagrams, sealed_datagram, sealed_datagram),
    decoder("identity", samples::identities, identity),
    decoder("subject", samples::subjects, subject),
    decoder("certificate", samples::certificates, certificate),
    decoder("subtree", text::subtrees, text::subtree),
    decoder("endpoint", text::endpoints, text::endpoint),
    summed("superblock", disk::superblocks, disk::superblock, disk::whole_superblock),
    summed("manifest", disk::manifest_records, disk::manifest_record, disk::whole_manifest_record),
    summed("seal", disk::seals, disk::seal, disk::whole_seal),
    summed("part", disk::parts, disk::part, disk::whole_part),
    summed("slot", disk::slot_blocks, disk::slot_block, disk::whole_slot_block),
    decoder("segment-meta", disk::segment_metas, disk::segment_meta),
    summed("segment-block", disk::segment_blocks, disk::segment_block, disk::whole_segment_block),
    decoder("inode", items::inodes, items::inode),
    decoder("dirent", items::dirents, items::dirent),
    decoder("extent", items::extents, items::extent),
    decoder("orphan", items::orphans, items::orphan),
    decoder("bitmap", items::bitmaps, items::bitmap),
    decoder("owners", items::counts_of_owners, items::owners),
    decoder("xattr", items::xattrs, items::first_part),
    decoder("system", items::system_values, items::system_value),
    decoder("job", jobs::jobs, jobs::job),
    decoder("outcome", jobs::outcomes, jobs::outcome),
    decoder("nvme-controller", nvme::controllers, nvme::controller),
    decoder("nvme-namespace", nvme::namespaces, nvme::namespace),
    decoder("nvme-reservation", nvme::reservations, nvme::reservation),
    decoder("nvme-log", nvme::logs, nvme::log),
    decoder("nvme-completion", nvme::completions, nvme::completion),
    Target {
        memory_bytes: 8 << 20,
        gate_inputs: 500,
        ..decoder("nvme-driver", driver::controllers, driver::controller)
    },
    decoder("device", nvme::specs, nvme::spec),
    Target { gate_inputs: 1_000, ..decoder("vfio-user-client", vfio_user::clients, vfio_user::client) },
    Target { gate_inputs: 1_000, ..decoder("vfio-user-server", vfio_user::servers, vfio_user::server) },
    Target { gate_inputs: 300, ..decoder("keys", keys::bundles, keys::bundle) },
    Target { gate_inputs: 100, ..decoder("authority", keys::authorities, keys::authority) },
    Target { memory_bytes: 8 << 20, gate_inputs: 500, ..decoder("fuse", requests::samples, requests::request) },
    Target {
        draw: image::draw,
        memory_bytes: IMAGE_BYTES,
        gate_inputs: 300,
        ..decoder("image", image::samples, image::image)
    },
];

/// A socket's first bytes: header, lengths, checksum, message.
fn frame(bytes: &[u8]) -> bool {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return false };
    let Ok(header) = FrameHeader::decode(head) else { return false };
    let Some(control) = rest.get(..header.control_len as usize) else { return false };
    let control = Bytes::copy_from_slice(control);
    let Ok(frame) = Frame::decode(&header, control.clone(), None) else { return false };
    let mut again = Vec::new();
    frame.encode_head(&mut again);
    if header.payload_len == 0 {
        assert_eq!(&again[..], &bytes[..HEADER_LEN + control.len()], "a frame has one encoding");
    }
    true
}

// Messages without their frame: its checksum would refuse nearly every mutation. The first two bytes are the code.

fn coded(code: u16, encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = code.to_le_bytes().to_vec();
    encode(&mut out);
    out
}

fn requests() -> Vec<Vec<u8>> {
    samples::requests().iter().map(|request| coded(request.code(), |out| request.encode(out))).collect()
}

fn responses() -> Vec<Vec<u8>> {
    samples::responses().iter().map(|response| coded(response.code(), |out| response.encode(out))).collect()
}

fn request(bytes: &[u8]) -> bool {
    let Some((code, control)) = bytes.split_first_chunk::<2>() else { return false };
    let code = u16::from_le_bytes(*code);
    let Ok(request) = Request::decode(code, Bytes::copy_from_slice(control)) else { return false };
    let mut again = Vec::new();
    request.encode(&mut again);
    assert_eq!(Request::decode(request.code(), again.clone().into()).as_ref(), Ok(&request));
    assert!(request.control_len() >= again.len(), "what is to be sent is never longer than announced");
    let _ = request.data_bytes(0);
    true
}

fn response(bytes: &[u8]) -> bool {
    let Some((code, control)) = bytes.split_first_chunk::<2>() else { return false };
    let code = u16::from_le_bytes(*code);
    let Ok(response) = Response::decode(code, Bytes::copy_from_slice(control)) else { return false };
    let mut again = Vec::new();
    response.encode(&mut again);
    assert_eq!(Response::decode(response.code(), again.clone().into()).as_ref(), Ok(&response));
    assert!(response.control_len() >= again.len(), "what is to be sent is never longer than announced");
    true
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

fn greetings() -> Vec<Vec<u8>> {
    samples::greetings().iter().map(|greeting| encoded(|out| greeting.encode(out))).collect()
}

fn greeted() -> Vec<Vec<u8>> {
    vec![encoded(|out| samples::greeted().encode(out))]
}

fn refusals() -> Vec<Vec<u8>> {
    samples::refusals().iter().map(|refusal| encoded(|out| refusal.encode(out))).collect()
}

fn greeting(bytes: &[u8]) -> bool {
    let Ok(greeting) = Greeting::decode(Bytes::copy_from_slice(bytes)) else { return false };
    assert_eq!(encoded(|out| greeting.encode(out)), bytes, "a greeting has one encoding");
    true
}

fn check_greeted(bytes: &[u8]) -> bool {
    let Ok(greeted) = Greeted::decode(Bytes::copy_from_slice(bytes)) else { return false };
    assert_eq!(encoded(|out| greeted.encode(out)), bytes, "an answer has one encoding");
    true
}

fn refusal(bytes: &[u8]) -> bool {
    let Ok(refusal) = Refusal::decode(Bytes::copy_from_slice(bytes)) else { return false };
    let again = encoded(|out| refusal.encode(out));
    assert_eq!(Refusal::decode(again.into()), Ok(refusal));
    true
}

fn whole_datagram(bytes: &[u8]) -> bool {
    QuorumDatagram::decode(bytes, &NoAuth).is_ok()
}

/// As it came, and with the checksum put right: an attacker on loopback can count too.
fn datagram(bytes: &[u8]) -> bool {
    let mut bytes = bytes.to_vec();
    let as_is = whole_datagram(&bytes);
    if bytes.len() == DATAGRAM_LEN {
        let crc = crc32c(&bytes[..DATAGRAM_LEN - 4]);
        bytes[DATAGRAM_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    let Ok(datagram) = QuorumDatagram::decode(&bytes, &NoAuth) else {
        assert!(!as_is);
        return false;
    };
    assert_eq!(datagram.encode(&NoAuth), bytes, "a datagram has one encoding");
    true
}

fn quorum_key() -> QuorumKey {
    QuorumKey::new(&[5; 32])
}

fn sealed_datagrams() -> Vec<Vec<u8>> {
    samples::datagrams().iter().map(|datagram| datagram.encode(&quorum_key())).collect()
}

/// Nothing but what a member wrote is accepted.
fn sealed_datagram(bytes: &[u8]) -> bool {
    let accepted = QuorumDatagram::decode(bytes, &quorum_key()).is_ok();
    assert_eq!(accepted, sealed_datagrams().iter().any(|sample| sample == bytes), "a forged datagram");
    let _ = quorum_key().open(bytes);
    accepted
}

fn identity(bytes: &[u8]) -> bool {
    let Ok(identity) = ClientIdentity::decode(bytes) else { return false };
    assert_eq!(identity.encode(), bytes, "an identity has one encoding");
    true
}

fn subject(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(subject) = text.parse::<Subject>() else { return false };
    assert_eq!(subject.to_string(), text, "a subject has one spelling");
    true
}

fn certificate(bytes: &[u8]) -> bool {
    let dates = validity(bytes);
    let subject = certificate_subject(bytes);
    dates.is_some() && subject.is_ok()
}
