//! STUB, not committed.
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use vellum_base::*;
use vellum_wire::*;
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    #[error("x")]
    Engine(WireError),
    #[error("x")]
    Fenced { unsynced: usize },
    #[error("x")]
    BatchFailed { number: u64, unsynced: usize, cause: WireError },
    #[error("x")]
    Connection(String),
    #[error("x")]
    Protocol { request: &'static str },
    #[error("x")]
    StaleRange { start: u64 },
    #[error("x")]
    Stopped,
}
impl ClientError {
    pub fn code(&self) -> Option<ErrorCode> { None }
}
type R<T> = Result<T, ClientError>;
pub struct Client;
pub struct LockGuard;
pub struct Txn;
#[derive(Clone, Copy)]
pub struct TxnId(pub u64);
pub struct ScanPage { pub items: Vec<(Key, bytes::Bytes)>, pub next: Option<Key> }
impl LockGuard {
    pub fn covers(&self, _ino: Ino, _mode: LockMode) -> bool { unreachable!() }
}
impl Txn {
    pub fn put(&mut self, _key: Key, _value: bytes::Bytes) {}
    pub fn delete(&mut self, _key: Key) {}
    pub fn delete_inode(&mut self, _ino: Ino) {}
    pub fn commit(self) -> R<TxnId> { unreachable!() }
}
impl Client {
    pub fn rid(&self) -> Rid { unreachable!() }
    pub async fn lock(self: &Rc<Self>, _w: &[(LockName, LockMode)]) -> R<LockGuard> { unreachable!() }
    pub async fn get(self: &Rc<Self>, _g: &LockGuard, _k: Key) -> R<Option<bytes::Bytes>> { unreachable!() }
    pub async fn get_many(self: &Rc<Self>, _g: &LockGuard, _k: &[Key]) -> R<Vec<Option<bytes::Bytes>>> { unreachable!() }
    pub async fn scan(self: &Rc<Self>, _g: &LockGuard, _r: KeyRange, _max: usize) -> R<ScanPage> { unreachable!() }
    pub fn begin(self: &Rc<Self>, _g: &LockGuard) -> Txn { unreachable!() }
    pub async fn reserve(self: &Rc<Self>, _ops: usize) -> R<()> { unreachable!() }
    pub async fn sync(self: &Rc<Self>) -> R<()> { unreachable!() }
    pub async fn write_blocks(self: &Rc<Self>, _d: DmaSlice) -> R<Vec<BlockRange>> { unreachable!() }
    pub async fn read_blocks(self: &Rc<Self>, _r: &[BlockRange]) -> R<DmaBuf> { unreachable!() }
    pub async fn alloc_ino(self: &Rc<Self>, _dir: Ino, _is_dir: bool) -> R<Ino> { unreachable!() }
    pub fn set_release_hook(&self, _h: Rc<dyn Fn(LockGuard, LockMode) -> LocalBoxFuture<'static, ()>>) {}
    pub async fn statfs(self: &Rc<Self>) -> R<StatFs> { unreachable!() }
    pub async fn farewell(self: &Rc<Self>) -> R<()> { unreachable!() }
}
