//! A store of one reactor on a new filesystem in a file.

use std::error::Error;
use std::rc::Rc;

use vellum_base::Rid;
use vellum_nvme::OpenMode;
use vellum_store::{Everyone, MkfsOptions, OpenOptions, Store, mkfs, open};

pub const RID: Rid = Rid(1);

/// The file is there, with its size; [`RID`] is known.
pub async fn fresh(image: &str, options: OpenOptions) -> Result<Rc<Store>, Box<dyn Error>> {
    let device = vellum_nvme::open(image, OpenMode { exclusive: true, ..OpenMode::default() })?;
    let queue = vellum_store::PolledQueue::open(&*device, 64, "open")?;
    mkfs(&device, &queue, MkfsOptions::default()).await?;
    let seed = open(&device, &queue, options).await?.seeds.pop().ok_or("no seed")?;
    drop(queue);
    let store = Store::start(seed, Rc::new(Everyone)).await?;
    store.open_rid(RID, b"example").await?;
    Ok(store)
}
