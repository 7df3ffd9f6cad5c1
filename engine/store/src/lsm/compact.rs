//! Runs a compaction.

use vellum_base::Epoch;
use vellum_format::SegmentMeta;
use vellum_format::segment::BlockKind;

use super::bottom::Bottom;
use super::merge::Merge;
use super::output::Output;
use super::stream::Stream;
use super::{Edit, Job, LsmError, Shard};

impl Shard {
    /// Merges the job's inputs. The edit's segments are on the medium; give it to `install` when the manifest has it, or
    /// to `abandon`. On an error nothing is left behind.
    pub async fn run_compaction(&self, job: Job) -> Result<Edit, LsmError> {
        let removed = job.segments().map(|segment| segment.meta.id).collect();
        let added = if job.is_move() {
            job.segments()
                .map(|segment| (job.level, SegmentMeta { run: Epoch::NONE, ..segment.meta.clone() }))
                .collect()
        } else {
            let metas = self.merge(&job).await?;
            metas.into_iter().map(|meta| (job.level, meta)).collect()
        };
        job.claimed.set(false); // the inputs stay busy until the edit is installed or abandoned
        Ok(Edit { added, removed, flushed_through: self.flushed_through() })
    }

    async fn merge(&self, job: &Job) -> Result<Vec<SegmentMeta>, LsmError> {
        let state = self.state();
        let bottom = Bottom::new(state.levels.get(job.level..).unwrap_or_default().to_vec());
        drop(state);
        let epochs = job.segments().fold((Epoch(u64::MAX), Epoch::NONE), |(min, max), segment| {
            (min.min(segment.meta.min_epoch), max.max(segment.meta.max_epoch))
        });
        let queue = self.env.queue();
        let streams = |kind| job.inputs.iter().map(|run| Stream::new(queue.clone(), kind, run)).collect();
        let output = Output::new(&self.env, &self.cfg, Epoch::NONE, epochs);
        let (points, ranges) = (streams(BlockKind::Data), streams(BlockKind::Tombstones));
        let merge = Merge::open(points, ranges, self.oldest_reader(), bottom, output).await?;
        merge.run().await?.finish().await
    }
}
