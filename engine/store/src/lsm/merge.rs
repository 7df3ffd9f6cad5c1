//! Merges the inputs of a compaction, from new (rank 0) to old, and decides which versions live on.

use vellum_base::{Epoch, Key, KeyRange};

use super::LsmError;
use super::bottom::Bottom;
use super::execute::Cancel;
use super::job::CompactionJob;
use super::output::Output;
use super::stream::Stream;

/// A piece of key space with the same range tombstones throughout.
struct Covering {
    first: Key,
    last: Key,
    /// Rank and epoch, newest first.
    stamps: Vec<(usize, Epoch)>,
}

impl Covering {
    fn covers(&self, key: &Key) -> bool {
        self.first <= *key && *key <= self.last
    }

    /// Stamps that hide an entry of this rank and epoch.
    fn hiding(&self, rank: usize, epoch: Epoch) -> impl Iterator<Item = Epoch> + '_ {
        self.stamps.iter().filter(move |(r, e)| *r < rank || (*r == rank && *e > epoch)).map(|(_, e)| *e)
    }
}

/// The range tombstone that one input stands at.
struct Head {
    stream: Stream,
    first: Key,
    last: Key,
    epochs: Vec<Epoch>,
    ended: bool,
}

impl Head {
    async fn advance(&mut self) -> Result<(), LsmError> {
        if !self.stream.step()? {
            self.stream.advance().await?;
        }
        self.read()
    }

    fn read(&mut self) -> Result<(), LsmError> {
        match self.stream.range(&mut self.epochs)? {
            Some((first, last)) => (self.first, self.last) = (first, last),
            None => self.ended = true,
        }
        Ok(())
    }
}

/// The range tombstones of all inputs, cut so that they do not overlap.
struct Coverings {
    heads: Vec<Head>,
    /// Pieces before this key have been answered.
    position: Option<Key>,
}

impl Coverings {
    async fn open(streams: Vec<Stream>) -> Result<Coverings, LsmError> {
        let mut heads = Vec::with_capacity(streams.len());
        for mut stream in streams {
            stream.advance().await?;
            let mut head = Head { stream, first: Key::MIN, last: Key::MIN, epochs: Vec::new(), ended: false };
            head.read()?;
            heads.push(head);
        }
        Ok(Coverings { heads, position: Some(Key::MIN) })
    }

    async fn next(&mut self) -> Result<Option<Covering>, LsmError> {
        let Some(position) = self.position else { return Ok(None) };
        let live = || self.heads.iter().filter(|head| !head.ended);
        let Some(first) = live().map(|head| head.first.max(position)).min() else { return Ok(None) };
        let end =
            live().filter_map(|head| if head.first <= first { Some(head.last) } else { head.first.predecessor() });
        let Some(last) = end.min() else { return Ok(None) };
        let covering = |(_, head): &(usize, &Head)| !head.ended && head.first <= first;
        let stamps = self.heads.iter().enumerate().filter(covering);
        let stamps = stamps.flat_map(|(rank, head)| head.epochs.iter().map(move |epoch| (rank, *epoch))).collect();
        self.position = last.successor();
        for head in self.heads.iter_mut().filter(|head| !head.ended && head.last <= last) {
            head.advance().await?;
        }
        Ok(Some(Covering { first, last, stamps }))
    }
}

/// What was read of all inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub entries: u64,
    pub range_tombstones: u64,
}

pub struct Merge<'a> {
    /// Points of the inputs; their index is their rank.
    points: Vec<Stream>,
    coverings: Coverings,
    covering: Option<Covering>,
    oldest: Epoch,
    bottom: &'a Bottom,
    /// Keys beyond are other shards', and passed over.
    within: KeyRange,
    output: &'a mut Output,
    cancel: &'a Cancel,
}

impl<'a> Merge<'a> {
    pub async fn open(
        mut points: Vec<Stream>,
        ranges: Vec<Stream>,
        job: &'a CompactionJob,
        output: &'a mut Output,
        cancel: &'a Cancel,
    ) -> Result<Merge<'a>, LsmError> {
        for stream in &mut points {
            stream.advance().await?;
        }
        let mut coverings = Coverings::open(ranges).await?;
        let covering = coverings.next().await?;
        let (oldest, bottom, within) = (job.oldest, &job.bottom, job.within);
        Ok(Merge { points, coverings, covering, oldest, bottom, within, output, cancel })
    }

    pub async fn run(mut self) -> Result<Tally, LsmError> {
        while let Some(key) = self.points.iter().filter_map(Stream::key).min().copied() {
            self.pass_ranges_before(&key).await?;
            if self.output.is_full() {
                self.cut_before(&key).await?;
                vellum_rt::yield_if_needed().await;
            }
            self.one_key(&key).await?;
        }
        while let Some(covering) = self.covering.take() {
            self.emit_range(&covering)?;
            if self.output.is_full() {
                self.output.cut().await?; // after it, never within: keys in it are in this segment already
            }
            self.covering = self.coverings.next().await?;
            self.cancel.check()?;
            vellum_rt::yield_if_needed().await;
        }
        Ok(Tally {
            entries: self.points.iter().map(Stream::entries_read).sum(),
            range_tombstones: self.coverings.heads.iter().map(|head| head.stream.entries_read()).sum(),
        })
    }

    async fn pass_ranges_before(&mut self, key: &Key) -> Result<(), LsmError> {
        while let Some(covering) = self.covering.take_if(|covering| covering.last < *key) {
            self.emit_range(&covering)?;
            if self.output.is_full() {
                self.output.cut().await?; // after it, never within: keys in it are in this segment already
            }
            self.covering = self.coverings.next().await?;
        }
        Ok(())
    }

    /// Ends the segment; a range that reaches over the boundary is cut there.
    async fn cut_before(&mut self, key: &Key) -> Result<(), LsmError> {
        if let Some(mut covering) = self.covering.take() {
            if covering.first < *key
                && let Some(before) = key.predecessor()
            {
                let left = Covering { first: covering.first, last: before, stamps: covering.stamps.clone() };
                self.emit_range(&left)?;
                covering.first = *key;
            }
            self.covering = Some(covering);
        }
        self.output.cut().await
    }

    /// All versions of a key, newest first. `done` once a version is reached that every reader sees.
    async fn one_key(&mut self, key: &Key) -> Result<(), LsmError> {
        let mut done = !self.within.contains(key);
        for rank in 0..self.points.len() {
            while self.points[rank].key() == Some(key) {
                if !done {
                    done = self.one_version(key, rank)?;
                }
                if !self.points[rank].step()? {
                    self.points[rank].advance().await?;
                    self.cancel.check()?;
                    vellum_rt::yield_if_needed().await;
                }
            }
        }
        Ok(())
    }

    fn one_version(&mut self, key: &Key, rank: usize) -> Result<bool, LsmError> {
        let Some((epoch, value)) = self.points[rank].entry() else { return Ok(false) };
        if let Some(covering) = self.covering.as_ref().filter(|covering| covering.covers(key))
            && covering.hiding(rank, epoch).any(|deleted| deleted <= self.oldest)
        {
            return Ok(true);
        }
        if epoch > self.oldest {
            self.output.add(key, epoch, value)?;
            return Ok(false);
        }
        if value.is_some() || !self.bottom.is_below(key, key) {
            self.output.add(key, Epoch::NONE, value)?;
        }
        Ok(true)
    }

    fn emit_range(&mut self, covering: &Covering) -> Result<(), LsmError> {
        let mut epochs = Vec::new();
        for (_, epoch) in &covering.stamps {
            if *epoch <= self.oldest {
                if !self.bottom.is_below(&covering.first, &covering.last) {
                    epochs.push(Epoch::NONE);
                }
                break;
            }
            epochs.push(*epoch);
        }
        let (first, last) = (covering.first.max(self.within.first), covering.last.min(self.within.last));
        if first > last {
            return Ok(());
        }
        self.output.add_range(&first, &last, &epochs)
    }
}
