mod common;
use common::*;
use vellum_rt::native::block_on;
#[test]
fn waiting_is_short() {
    block_on(async {
        let device = memory(64 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, options(1)).await.unwrap();
        let mut c = Client::open(&stores[0], RID).await;
        for i in 0..5 {
            let t = std::time::Instant::now();
            let e = c.commit(&stores[0], vec![put_inode(ino(1, 5 + i), &inode(1, 1))]).await.unwrap();
            let t1 = t.elapsed();
            stores[0].wait_durable(e).await.unwrap();
            eprintln!("{t1:?} {:?}", t.elapsed());
        }
        let t = std::time::Instant::now();
        for _ in 0..20 { stores[0].alloc_group(None).await.unwrap(); }
        eprintln!("groups {:?}", t.elapsed());
        vellum_rt::sleep(std::time::Duration::from_millis(500)).await;
        let t = std::time::Instant::now();
        for _ in 0..20 { stores[0].alloc_group(None).await.unwrap(); }
        eprintln!("groups {:?}", t.elapsed());
    });
}
