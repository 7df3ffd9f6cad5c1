//! What a controller sees of its host.

/// An address that is no memory of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusFault;

/// Host memory by device address, and the doorbells that the host writes.
///
/// Memory that both sides use at once (queues, doorbell buffers) is accessed by the atomic calls; data by the others.
pub trait Bus: Send + Sync + 'static {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), BusFault>;
    fn write(&self, at: u64, data: &[u8]) -> Result<(), BusFault>;

    /// Acquires what the host wrote before this word.
    fn load32(&self, at: u64) -> Result<u32, BusFault>;
    /// Releases what was written before.
    fn store32(&self, at: u64, value: u32) -> Result<(), BusFault>;

    /// The doorbell at 4 * `index` bytes behind the first.
    fn doorbell(&self, index: usize) -> u32;
    fn set_doorbell(&self, index: usize, value: u32);
}
