//! Changes to an image: rot, which checksums find, and forgeries, whose checksums and chains are put right, so that what
//! decodes behind them is reached.

use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, BlockAddr};
use vellum_format::block::{self, BLOCK_HEADER, BlockKind};
use vellum_format::manifest::MANIFEST_VERSION;
use vellum_format::seal::SEAL_VERSION;
use vellum_format::segment::block::{CRC_FROM, HEADER_LEN};
use vellum_format::superblock::SUPERBLOCK_VERSION;
use vellum_format::{Seal, log::PART_VERSION};
use vellum_nvme::Image;

use super::base::{Base, read};
use crate::mutate::overwrite;

/// One change, drawn from `seed`. True when it is a forgery that nobody can see through: a manifest that says that what is
/// in the log is in segments too is believed, and the log is left behind.
pub fn change(base: &Base, image: &mut Image, seed: u64) -> bool {
    let prng = &mut Prng::new(seed);
    let kind = prng.below(8);
    match kind {
        0 => rot(base, image, prng),
        1 => superblock(base, image, prng),
        2 | 3 => manifest(base, image, prng),
        4 => seal(base, image, prng),
        5 => part(base, image, prng),
        _ => segment_block(base, image, prng),
    }
    matches!(kind, 2 | 3)
}

fn pick<'a, T>(prng: &mut Prng, list: &'a [T]) -> Option<&'a T> {
    (!list.is_empty()).then(|| &list[prng.below(list.len() as u64) as usize])
}

/// What media do: a flipped bit, a lost write, a write to a wrong place, a torn one.
fn rot(base: &Base, image: &mut Image, prng: &mut Prng) {
    let (Some(at), Some(other)) = (pick(prng, &base.written), pick(prng, &base.written)) else { return };
    let mut bytes = read(image, BlockAddr(*at), BLOCK_SIZE);
    let other = read(image, BlockAddr(*other), BLOCK_SIZE);
    match prng.below(4) {
        0 => bytes[prng.below(BLOCK_SIZE as u64) as usize] ^= 1 << prng.below(8),
        1 => bytes.fill(0),
        2 => bytes = other,
        _ => bytes[512 * prng.below(8) as usize..].fill(0),
    }
    image.write(at * BLOCK_SIZE as u64, &bytes);
}

/// Body length that a block's header says, as far as there is room: an earlier change may have spoiled it.
fn body_len(block: &[u8]) -> usize {
    let said = u32::from_le_bytes([block[12], block[13], block[14], block[15]]) as usize;
    let most = block.len() - BLOCK_HEADER;
    if block::padded_len(said) == block.len() { said } else { most }
}

fn generation(block: &[u8]) -> u64 {
    u64::from_le_bytes(block[32..40].try_into().unwrap_or_default())
}

/// Overwrites something of the body, from its byte `from` on; now and then of the header's generation.
fn overwrite_body(prng: &mut Prng, block: &mut [u8], from: usize) {
    let end = BLOCK_HEADER + body_len(block);
    if prng.one_in(24) {
        return overwrite(prng, &mut block[32..40]);
    }
    if let Some(body) = block.get_mut(BLOCK_HEADER + from..end) {
        overwrite(prng, body);
    }
}

fn superblock(base: &Base, image: &mut Image, prng: &mut Prng) {
    let mut bytes = read(image, base.superblocks[0], BLOCK_SIZE);
    overwrite_body(prng, &mut bytes, 16); // the fsid stays: nothing else would verify
    let (generation, len) = (generation(&bytes), body_len(&bytes));
    for at in base.superblocks {
        block::finish(&mut bytes, BlockKind::Superblock, SUPERBLOCK_VERSION, at, &base.fsid, generation, len);
        image.write(at.bytes(), &bytes);
    }
}

/// A record, and the chain of those after it.
fn manifest(base: &Base, image: &mut Image, prng: &mut Prng) {
    let chosen = prng.below(base.manifest.len().max(1) as u64) as usize;
    let mut prev = None;
    for (places, len) in base.manifest.iter().skip(chosen) {
        let mut bytes = read(image, places[0], *len);
        match prev {
            None => overwrite_body(prng, &mut bytes, 16), // after sequence and chain
            Some(hash) => bytes[BLOCK_HEADER + 8..BLOCK_HEADER + 16].copy_from_slice(&u64::to_le_bytes(hash)),
        }
        let (generation, body) = (generation(&bytes), body_len(&bytes));
        prev = Some(block::chain_hash(&bytes[BLOCK_HEADER..BLOCK_HEADER + body]));
        for at in places {
            block::finish(&mut bytes, BlockKind::Manifest, MANIFEST_VERSION, *at, &base.fsid, generation, body);
            image.write(at.bytes(), &bytes);
        }
    }
}

/// Writes `seal` at the place of `base.seals[from]`, and the chain of those after it.
fn chain(base: &Base, image: &mut Image, from: usize, block: &[u8; BLOCK_SIZE]) {
    image.write(base.seals[from].0.bytes(), block);
    let mut prev_hash = block::chain_hash(block);
    for (at, _) in base.seals.iter().skip(from + 1) {
        let Ok((seal, _)) = Seal::decode(&read(image, *at, BLOCK_SIZE), *at, &base.fsid) else { return };
        let (block, hash) = Seal { prev_hash, ..seal }.encode(*at, &base.fsid);
        image.write(at.bytes(), &block);
        prev_hash = hash;
    }
}

fn seal(base: &Base, image: &mut Image, prng: &mut Prng) {
    let Some((at, _)) = pick(prng, &base.seals) else { return };
    let index = base.seals.iter().position(|(place, _)| place == at).unwrap_or_default();
    let mut bytes = [0; BLOCK_SIZE];
    image.read(at.bytes(), &mut bytes);
    overwrite_body(prng, &mut bytes, 0);
    let (generation, body) = (generation(&bytes), body_len(&bytes));
    block::finish(&mut bytes, BlockKind::Seal, SEAL_VERSION, *at, &base.fsid, generation, body);
    chain(base, image, index, &bytes);
}

/// Records of a part, and the checksum of it that its seal has.
fn part(base: &Base, image: &mut Image, prng: &mut Prng) {
    let index = prng.below(base.seals.len().max(1) as u64) as usize;
    let Some((at, _)) = base.seals.get(index) else { return };
    let Ok((mut seal, _)) = Seal::decode(&read(image, *at, BLOCK_SIZE), *at, &base.fsid) else { return };
    let chosen = prng.below(seal.parts.len().max(1) as u64) as usize;
    let Some(part) = seal.parts.get_mut(chosen).filter(|part| base.seals[index].1.parts.contains(part)) else {
        return; // an earlier change has led it astray
    };
    let mut bytes = read(image, part.addr, part.len_blocks as usize * BLOCK_SIZE);
    overwrite_body(prng, &mut bytes, 0);
    let (generation, body) = (generation(&bytes), body_len(&bytes));
    part.crc = block::finish(&mut bytes, BlockKind::Part, PART_VERSION, part.addr, &base.fsid, generation, body);
    image.write(part.addr.bytes(), &bytes);
    let (block, _) = seal.encode(*at, &base.fsid);
    chain(base, image, index, &block);
}

/// A block of a segment, payload or header.
fn segment_block(base: &Base, image: &mut Image, prng: &mut Prng) {
    let Some(place) = pick(prng, &base.segment_blocks) else { return };
    let addr = BlockAddr(place.device_bytes / BLOCK_SIZE as u64);
    let mut bytes = read(image, addr, place.len_bytes);
    let payload_len = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
    let from = if prng.one_in(8) { CRC_FROM } else { HEADER_LEN };
    let end = (HEADER_LEN + payload_len).min(bytes.len());
    overwrite(prng, &mut bytes[from..end]);
    let crc = vellum_base::crc32c_seeded(place.meta.id.0, place.at_bytes, &bytes[CRC_FROM..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    for copy in 0..2 {
        if let Some((at, _)) = place.meta.locate(copy, place.at_bytes) {
            image.write(at, &bytes);
        }
    }
}
