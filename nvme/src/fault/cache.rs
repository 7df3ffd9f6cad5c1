//! The model of a device with a volatile write cache: what is on the medium, and what is on its way there.
//!
//! The one transition function [`Cache::apply`] serves the living device and the replay of its journal.
//!
//! Invariants: `pending` is in order of completion, with those in flight last; the medium holds every write that a
//! completed flush covers (writes complete at the flush's submission); a completed FUA write is kept by every crash, in its
//! place of the order.

use vellum_base::DmaSlice;
use vellum_base::prng::Prng;

use crate::Image;

/// What the medium writes whole.
pub const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug)]
pub enum Payload {
    Data(DmaSlice),
    Zeros { len_bytes: u64 },
}

impl Payload {
    pub fn len_bytes(&self) -> u64 {
        match self {
            Payload::Data(data) => data.len() as u64,
            Payload::Zeros { len_bytes } => *len_bytes,
        }
    }

    /// Writes sectors `from..to` of this payload, which begins at `at_bytes`.
    fn put(&self, image: &mut Image, at_bytes: u64, from: usize, to: usize) {
        let (from, to) = (from * SECTOR_BYTES, to * SECTOR_BYTES);
        match self {
            Payload::Data(data) => image.write(at_bytes + from as u64, &data[from..to]),
            Payload::Zeros { .. } => image.zero(at_bytes + from as u64, (to - from) as u64),
        }
    }

    fn sectors(&self) -> usize {
        (self.len_bytes() / SECTOR_BYTES as u64) as usize
    }
}

/// Something that happened to a device. `id` names the operation.
#[derive(Clone, Debug)]
pub enum Event {
    Write {
        id: u64,
        at_bytes: u64,
        payload: Payload,
        fua: bool,
    },
    Written {
        id: u64,
    },
    /// The write failed after so many sectors.
    WriteFailed {
        id: u64,
        sectors: usize,
    },
    Flush {
        id: u64,
    },
    Flushed {
        id: u64,
    },
    /// A word of the test's own, such as what it knows to be durable.
    Note {
        value: u64,
    },
}

#[derive(Clone)]
struct Pending {
    id: u64,
    at_bytes: u64,
    payload: Payload,
    fua: bool,
    /// Turn of its submission, and of its completion.
    since: u64,
    done: Option<u64>,
}

#[derive(Clone)]
pub(super) struct Cache {
    medium: Image,
    /// What reads see.
    visible: Image,
    pending: Vec<Pending>,
    /// Flushes that run, with the turn of their submission.
    flushes: Vec<(u64, u64)>,
    turn: u64,
    note: u64,
}

impl Cache {
    pub fn new(image: Image) -> Cache {
        Cache { visible: image.clone(), medium: image, pending: Vec::new(), flushes: Vec::new(), turn: 0, note: 0 }
    }

    pub fn visible(&self) -> &Image {
        &self.visible
    }

    pub fn medium(&self) -> &Image {
        &self.medium
    }

    pub fn note(&self) -> u64 {
        self.note
    }

    /// Writes without an answer, with their length in sectors.
    pub fn in_flight(&self) -> Vec<(u64, usize)> {
        self.pending.iter().filter(|p| p.done.is_none()).map(|p| (p.id, p.payload.sectors())).collect()
    }

    /// Both on the medium and in what reads see.
    pub fn flip_bit(&mut self, at_bytes: u64, bit: u8) {
        for image in [&mut self.medium, &mut self.visible] {
            let mut byte = [0];
            image.read(at_bytes, &mut byte);
            image.write(at_bytes, &[byte[0] ^ (1 << (bit % 8))]);
        }
    }

    pub fn apply(&mut self, event: &Event) {
        self.turn += 1;
        match event {
            Event::Write { id, at_bytes, payload, fua } => self.pending.push(Pending {
                id: *id,
                at_bytes: *at_bytes,
                payload: payload.clone(),
                fua: *fua,
                since: self.turn,
                done: None,
            }),
            Event::Written { id } => self.written(*id, None),
            Event::WriteFailed { id, sectors } => self.written(*id, Some(*sectors)),
            Event::Flush { id } => self.flushes.push((*id, self.turn)),
            Event::Flushed { id } => {
                let Some(at) = self.flushes.iter().position(|(flush, _)| flush == id) else { return };
                let (_, submitted) = self.flushes.remove(at);
                let covered = self.pending.partition_point(|p| p.done.is_some_and(|done| done < submitted));
                self.settle(covered);
            }
            Event::Note { value } => self.note = *value,
        }
    }

    fn written(&mut self, id: u64, torn: Option<usize>) {
        let Some(at) = self.pending.iter().position(|p| p.id == id && p.done.is_none()) else { return };
        let mut write = self.pending.remove(at);
        if let Some(sectors) = torn {
            write.payload = match write.payload {
                Payload::Data(data) => Payload::Data(data.slice(0..sectors * SECTOR_BYTES)),
                Payload::Zeros { .. } => Payload::Zeros { len_bytes: (sectors * SECTOR_BYTES) as u64 },
            };
            write.fua = false;
        }
        write.done = Some(self.turn);
        write.payload.put(&mut self.visible, write.at_bytes, 0, write.payload.sectors());
        let first_in_flight = self.pending.partition_point(|p| p.done.is_some());
        self.pending.insert(first_in_flight, write);
        // A device that is only written with FUA keeps no cache.
        let on_medium = self.pending.iter().take_while(|p| p.done.is_some() && p.fua).count();
        self.settle(on_medium);
    }

    /// The first `count` pending writes are on the medium.
    fn settle(&mut self, count: usize) {
        for write in self.pending.drain(..count) {
            write.payload.put(&mut self.medium, write.at_bytes, 0, write.payload.sectors());
        }
    }

    /// One of the images that the medium may hold after power was lost now: each write that no flush covered is there, lost
    /// or torn, whatever became of the others. Writes that were in flight together land in any order.
    pub fn crash(&self, seed: u64) -> Image {
        let mut prng = Prng::new(seed);
        let mut image = self.medium.clone();
        let mut order: Vec<(u64, &Pending)> = self
            .pending
            .iter()
            .map(|p| (p.done.unwrap_or_else(|| p.since + prng.below(self.turn - p.since + 2)), p))
            .collect();
        order.sort_by_key(|(turn, _)| *turn);
        // Some crashes lose nearly all, some nearly nothing.
        let bias = prng.below(6);
        for (_, write) in order {
            let sectors = write.payload.sectors();
            let put = |image: &mut Image, from, to| write.payload.put(image, write.at_bytes, from, to);
            if write.fua && write.done.is_some() {
                put(&mut image, 0, sectors);
                continue;
            }
            match prng.below(4) + bias {
                0..=2 => {}
                3 => put(&mut image, 0, prng.below(sectors as u64 + 1) as usize),
                4 => (0..sectors).filter(|_| prng.one_in(2)).for_each(|k| put(&mut image, k, k + 1)),
                _ => put(&mut image, 0, sectors),
            }
        }
        image
    }
}
