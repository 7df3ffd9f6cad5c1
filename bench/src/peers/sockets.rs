//! Plain threads on plain sockets and files: what the runtime is held against.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};

use crate::recorder::Recorder;

/// How the two ends wait for each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// In the kernel.
    Block,
    /// By non-blocking reads in a loop.
    Spin,
}

/// Round trips of `size` bytes between two threads over a unix socket pair.
pub fn echo(wait: Wait, rounds: usize, size: usize, recorder: &mut Recorder) -> Result<()> {
    let (mut near, mut far) = UnixStream::pair().context("a socket pair")?;
    for end in [&near, &far] {
        end.set_nonblocking(wait == Wait::Spin)?;
    }
    let server = std::thread::spawn(move || -> Result<()> {
        let mut buf = vec![0u8; size];
        for _ in 0..rounds {
            fill(&mut far, &mut buf)?;
            far.write_all(&buf)?;
        }
        Ok(())
    });
    let mut buf = vec![7u8; size];
    for _ in 0..rounds {
        recorder.time(size as u64, || -> Result<()> {
            near.write_all(&buf)?;
            fill(&mut near, &mut buf)
        })?;
    }
    server.join().map_err(|_| anyhow::anyhow!("the echo thread panicked"))?
}

fn fill(from: &mut UnixStream, buf: &mut [u8]) -> Result<()> {
    let mut at = 0;
    while at < buf.len() {
        match from.read(&mut buf[at..]) {
            Ok(0) => anyhow::bail!("the peer left"),
            Ok(n) => at += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Random 4 KiB reads of `file` by one blocking thread: depth 1 by nature.
pub fn reads(file: &File, blocks: u64, count: usize, recorder: &mut Recorder) -> Result<()> {
    let mut prng = vellum_base::prng::Prng::new(3);
    let mut buf = vellum_base::DmaBuf::new(vellum_base::BLOCK_SIZE);
    for _ in 0..count {
        let at = prng.below(blocks) * vellum_base::BLOCK_SIZE as u64;
        recorder.time(vellum_base::BLOCK_SIZE as u64, || file.read_exact_at(&mut buf, at))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoes_come_back_both_ways_of_waiting() {
        for wait in [Wait::Block, Wait::Spin] {
            let mut r = Recorder::default();
            echo(wait, 50, 64, &mut r).unwrap();
            assert_eq!(r.ops(), 50);
        }
    }
}
