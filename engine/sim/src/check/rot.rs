//! P3: a device that lies is found out. On some of the images that a crash leaves, one block is made wrong: a bit flips, a
//! write was lost, or landed somewhere else. Whoever then reads the filesystem gets an error that says so, or what is right.
//!
//! One lie cannot be told from a crash: at the end of the log, in what no later seal has confirmed. Then the newest batches are
//! gone, and what is left is a state that was.

use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, mutant};
use vellum_nvme::Image;
use vellum_store::OpenOptions;

use super::history::{History, Survived};
use super::inspect::{problems, read_whole};

/// Draws of a block until one is written.
const TRIES: usize = 4000;

/// What is wrong with one block.
#[derive(Clone, Debug)]
pub struct Lie {
    pub block: u64,
    pub what: String,
    content: Vec<u8>,
}

fn block_of(image: &Image, block: u64) -> Vec<u8> {
    let mut content = vec![0; BLOCK_SIZE];
    image.read(block * BLOCK_SIZE as u64, &mut content);
    content
}

fn some_block(image: &Image, prng: &mut Prng) -> (u64, Vec<u8>) {
    let blocks = image.len_bytes() / BLOCK_SIZE as u64;
    let mut found = (0, block_of(image, 0));
    for _ in 0..TRIES {
        let block = prng.below(blocks);
        let content = block_of(image, block);
        if content.iter().any(|byte| *byte != 0) {
            found = (block, content);
            break;
        }
    }
    found
}

/// A lie about a block that holds something.
pub fn lie(image: &Image, prng: &mut Prng) -> Lie {
    let (block, mut content) = some_block(image, prng);
    let what = match prng.below(4) {
        0 | 1 => {
            let bit = prng.below(8 * BLOCK_SIZE as u64) as usize;
            content[bit / 8] ^= 1 << (bit % 8);
            format!("bit {bit} of block {block} has flipped")
        }
        2 => {
            content.fill(0);
            format!("the only write of block {block} was lost")
        }
        _ => {
            let (other, found) = some_block(image, prng);
            content = found;
            format!("what belongs to block {other} was written to block {block} too")
        }
    };
    Lie { block, what, content }
}

/// Some writes of the image were lost, or landed somewhere else: whatever is read of it was written once.
pub fn inspect_astray(image: &Image, options: &OpenOptions, seed: u64, history: &History) -> Result<(), String> {
    let bug = mutant::replace(None);
    let found = read_whole(image, options, seed);
    mutant::replace(bug);
    let Ok(found) = found else { return Ok(()) };
    let wrong = found.files.iter().find(|(ino, file)| !history.was_ever(**ino, file));
    wrong.map_or(Ok(()), |(ino, file)| Err(format!("{ino} is read as {file:?}, which nobody wrote")))
}

/// The image with the lie in it is read: what comes must be right, or an error. `honest` is what is there without the lie.
pub fn inspect(
    image: &Image,
    lie: &Lie,
    options: &OpenOptions,
    honest: &Survived,
    history: &History,
) -> Result<(), String> {
    let mut rotten = image.clone();
    rotten.write(lie.block * BLOCK_SIZE as u64, &lie.content);
    let named = !problems(&rotten, lie.block)?.found.is_empty();
    let Ok(found) = read_whole(&rotten, options, lie.block) else { return Ok(()) };
    let what = &lie.what;
    for (ino, file) in &found.files {
        if !history.was_ever(*ino, file) {
            return Err(format!("{what}: {ino} is read as {file:?}, which nobody wrote"));
        }
    }
    let is_older = found.last_batch.iter().all(|(rid, last)| honest.last_batch.get(rid).is_none_or(|l| last <= l));
    if !is_older {
        return Err(format!("{what}: batches are there that were not"));
    }
    if found.files != honest.files && found.last_batch == honest.last_batch && !named {
        return Err(format!("{what}: {} files are read, {} are there", found.files.len(), honest.files.len()));
    }
    Ok(())
}
