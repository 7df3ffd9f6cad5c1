//! The model of a volatile write cache, fed by events; the same code runs live and when a journal is replayed.
//!
//! Invariants: `done` is in order of completion; `medium` is exactly the base plus every write before `done`; a write is
//! durable when a good flush that began after its completion has ended, or when it was FUA and is done. So what a crash
//! leaves is the medium, plus the durable writes, plus any part of the others, later writes over earlier ones, except
//! that writes in flight together are in any order.

use std::collections::VecDeque;

use vellum_base::DmaSlice;
use vellum_base::prng::Prng;

use crate::Image;

/// What a write (or discard) puts down.
#[derive(Clone, Debug)]
pub enum Content {
    Data(DmaSlice),
    /// What a discard leaves: nothing to rely on.
    Garbage {
        seed: u64,
        len_bytes: u64,
    },
}

/// What really happened to a write that ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    Whole,
    Nothing,
    /// It went to this place.
    At(u64),
    /// Some of its sectors, chosen by the seed.
    Torn(u64),
}

#[derive(Clone, Debug)]
pub enum Event {
    WriteBegin {
        id: u64,
        at_bytes: u64,
        content: Content,
        fua: bool,
    },
    WriteEnd {
        id: u64,
        effect: Effect,
    },
    FlushBegin {
        id: u64,
    },
    FlushEnd {
        id: u64,
        good: bool,
    },
    /// A bit of the medium rots.
    Flip {
        at_bytes: u64,
        bit: u8,
    },
}

#[derive(Clone)]
struct Begun {
    id: u64,
    at_bytes: u64,
    content: Content,
    fua: bool,
    /// Writes that were done before it began are before it.
    after: u64,
}

#[derive(Clone)]
struct Done {
    at_bytes: u64,
    content: Content,
    effect: Effect,
    durable: bool,
}

#[derive(Clone)]
pub(super) struct WriteCache {
    medium: Image,
    visible: Image,
    sector_bytes: usize,
    begun: Vec<Begun>,
    done: VecDeque<Done>,
    /// Number of the first entry of `done`, counted from the beginning.
    first_done: u64,
    /// Flushes in flight: id, and how many writes were done when each began.
    flushes: Vec<(u64, u64)>,
}

impl WriteCache {
    pub fn new(base: Image, sector_bytes: usize) -> WriteCache {
        WriteCache {
            visible: base.clone(),
            medium: base,
            sector_bytes,
            begun: Vec::new(),
            done: VecDeque::new(),
            first_done: 0,
            flushes: Vec::new(),
        }
    }

    /// What reads see.
    pub fn visible(&self) -> &Image {
        &self.visible
    }

    fn done_count(&self) -> u64 {
        self.first_done + self.done.len() as u64
    }

    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::WriteBegin { id, at_bytes, content, fua } => {
                let (content, after) = (content.clone(), self.done_count());
                self.begun.push(Begun { id: *id, at_bytes: *at_bytes, content, fua: *fua, after });
            }
            Event::WriteEnd { id, effect } => {
                let Some(index) = self.begun.iter().position(|write| write.id == *id) else { return };
                let Begun { at_bytes, content, fua, .. } = self.begun.remove(index);
                land(&mut self.visible, at_bytes, &content, *effect, self.sector_bytes);
                self.done.push_back(Done { at_bytes, content, effect: *effect, durable: fua });
                self.fold();
            }
            Event::FlushBegin { id } => self.flushes.push((*id, self.done_count())),
            Event::FlushEnd { id, good } => {
                let Some(index) = self.flushes.iter().position(|(flush, _)| flush == id) else { return };
                let (_, covered) = self.flushes.remove(index);
                if *good {
                    let count = covered.saturating_sub(self.first_done) as usize;
                    self.done.iter_mut().take(count).for_each(|write| write.durable = true);
                    self.fold();
                }
            }
            Event::Flip { at_bytes, bit } => {
                flip(&mut self.medium, *at_bytes, *bit);
                flip(&mut self.visible, *at_bytes, *bit);
            }
        }
    }

    /// Only a prefix can be folded: a write that a crash may still drop must not come after a later one to its place.
    fn fold(&mut self) {
        while self.done.front().is_some_and(|write| write.durable) {
            if let Some(write) = self.done.pop_front() {
                land(&mut self.medium, write.at_bytes, &write.content, write.effect, self.sector_bytes);
                self.first_done += 1;
            }
        }
    }

    /// What the medium holds after power is lost now. Some seeds drop, and some keep, all that may be lost.
    pub fn crash(&self, seed: u64) -> Image {
        let mut prng = Prng::new(seed);
        let mode = prng.below(6);
        let done = self
            .done
            .iter()
            .zip(self.first_done..)
            .map(|(write, number)| ((number, 1), write.at_bytes, &write.content, write.effect, write.durable));
        let mut writes: Vec<_> = done.collect();
        for write in &self.begun {
            // It may have reached the medium at any time since it began.
            let from = write.after.max(self.first_done);
            let number = from + prng.below(self.done_count() - from + 1);
            writes.push(((number, 0), write.at_bytes, &write.content, Effect::Whole, false));
        }
        writes.sort_by_key(|write| write.0); // stable: those in flight with equal numbers stay in order of begin
        let mut image = self.medium.clone();
        for (_, at_bytes, content, effect, durable) in writes {
            let fate = match (durable, mode) {
                (true, _) | (false, 1) => effect,
                (false, 0) => Effect::Nothing,
                _ => match (prng.below(3), effect) {
                    (0, _) => Effect::Nothing,
                    (1, Effect::Whole) => Effect::Torn(prng.next_u64()),
                    _ => effect,
                },
            };
            land(&mut image, at_bytes, content, fate, self.sector_bytes);
        }
        image
    }
}

fn flip(image: &mut Image, at_bytes: u64, bit: u8) {
    let mut byte = [0];
    image.read(at_bytes, &mut byte);
    byte[0] ^= 1 << (bit & 7);
    image.write(at_bytes, &byte);
}

fn land(image: &mut Image, at_bytes: u64, content: &Content, effect: Effect, sector_bytes: usize) {
    let garbage;
    let data: &[u8] = match content {
        Content::Data(data) => data,
        Content::Garbage { seed, len_bytes } => {
            garbage = garbage_of(*seed, *len_bytes);
            &garbage
        }
    };
    match effect {
        Effect::Whole => image.write(at_bytes, data),
        Effect::Nothing => {}
        Effect::At(other) => image.write(other, data),
        Effect::Torn(seed) => {
            let mut prng = Prng::new(seed);
            let sectors = data.len().div_ceil(sector_bytes) as u64;
            // Half of the time a prefix, as an interrupted transfer leaves; else any of the sectors.
            let prefix = prng.one_in(2).then(|| prng.below(sectors + 1));
            for (index, sector) in data.chunks(sector_bytes).enumerate() {
                let kept = prefix.map_or_else(|| prng.one_in(2), |prefix| (index as u64) < prefix);
                if kept {
                    image.write(at_bytes + (index * sector_bytes) as u64, sector);
                }
            }
        }
    }
}

/// Zeros for some seeds, as many devices give, and noise for others. The noise repeats: a discard may be large.
fn garbage_of(seed: u64, len_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes as usize];
    let mut prng = Prng::new(seed);
    if !prng.one_in(2) {
        let mut noise = [0; 4096];
        prng.fill(&mut noise);
        for chunk in bytes.chunks_mut(noise.len()) {
            chunk.copy_from_slice(&noise[..chunk.len()]);
        }
    }
    bytes
}
