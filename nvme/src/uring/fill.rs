//! Files as devices of their own.

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

const PIECE: usize = 1 << 20;

/// Makes the file at least so long; what it grows by is written with zeros, and durable. A file that is only set to its
/// length has its blocks allocated one by one as they are first written, and the host's filesystem then writes its own
/// journal at each flush: several times a flush's time. The blocks of this one are there, as a device's are.
pub fn extend_written(path: &Path, len_bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    let mut at = file.seek(SeekFrom::End(0))?;
    let zeros = vec![0; PIECE];
    while at < len_bytes {
        let piece = zeros.len().min((len_bytes - at) as usize);
        file.write_all(&zeros[..piece])?;
        at += piece as u64;
    }
    file.sync_all()
}
