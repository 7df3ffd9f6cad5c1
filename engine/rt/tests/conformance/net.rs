//! Streams and datagrams.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rt::Class;
use rt::net::{Datagram, Endpoint, Listener, Stream};
use vellum_base::DmaBuf;
use vellum_base::prng::Prng;
use vellum_rt as rt;

fn tcp() -> Endpoint {
    "tcp:127.0.0.1:0".parse().unwrap()
}

fn unix() -> Endpoint {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("vellum-rt-{}-{}.sock", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Endpoint::Unix(std::env::temp_dir().join(PathBuf::from(name)))
}

async fn pair(at: Endpoint) -> (Stream, Stream, Listener) {
    let listener = Listener::bind(&at).unwrap();
    let at = listener.local_endpoint().unwrap();
    let connecting = rt::spawn(Class::Request, "connects", async move { Stream::connect(&at).await });
    let accepted = listener.accept().await.unwrap();
    (connecting.await.unwrap().unwrap(), accepted, listener)
}

/// Exactly `len` bytes, or fewer when the stream ends.
async fn recv_exact(stream: &Stream, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = DmaBuf::new(len);
    let mut got = 0;
    while got < len {
        let (result, back) = stream.recv(buf, got..len).await;
        buf = back;
        match result? {
            0 => break,
            n => got += n,
        }
    }
    Ok(buf[..got].to_vec())
}

async fn echo(at: Endpoint) {
    let (client, server, _listener) = pair(at).await;
    let server_task = rt::spawn(Class::Request, "echo", async move {
        let mut buf = DmaBuf::new(4096);
        loop {
            let (result, back) = server.recv(buf, 0..4096).await;
            buf = back;
            let n = result.unwrap();
            if n == 0 {
                return;
            }
            server.send_all(buf[..n].to_vec(), None).await.0.unwrap();
        }
    });
    for i in 0..200u32 {
        let head = i.to_le_bytes().to_vec();
        let payload = DmaBuf::copy_from(b"payload", false).freeze();
        let (sent, head) = client.send_all(head, Some(payload)).await;
        sent.unwrap();
        let got = recv_exact(&client, 11).await.unwrap();
        assert_eq!(got, [&head[..], b"payload"].concat());
    }
    drop(client);
    server_task.await.unwrap();
}

pub async fn a_tcp_stream_echoes() {
    echo(tcp()).await;
}

pub async fn a_unix_stream_echoes_and_knows_its_peer() {
    let at = unix();
    echo(at.clone()).await;
    let (client, server, _listener) = pair(at).await;
    assert!(server.peer_cred().is_some() && client.peer_cred().is_some());
    let (client, _server, _listener) = pair(tcp()).await;
    assert!(client.peer_cred().is_none());
}

pub async fn a_large_transfer_arrives_whole_and_in_order() {
    const LEN: usize = 5_000_000;
    let (client, server, _listener) = pair(tcp()).await;
    let mut data = vec![0; LEN];
    Prng::new(1).fill(&mut data);
    let copy = DmaBuf::copy_from(&data, false);
    let sender = rt::spawn(Class::Request, "sends", async move {
        let (sent, _) = client.send_all(b"head".to_vec(), Some(copy.freeze())).await;
        sent.unwrap();
    });
    let got = recv_exact(&server, LEN + 100).await.unwrap();
    sender.await.unwrap();
    assert_eq!(got.len(), LEN + 4);
    assert!(&got[..4] == b"head" && got[4..] == data);
}

pub async fn a_closed_stream_ends() {
    let (client, server, _listener) = pair(unix()).await;
    client.send_all(b"bye".to_vec(), None).await.0.unwrap();
    drop(client);
    assert_eq!(recv_exact(&server, 10).await.unwrap(), b"bye");
    // The peer is gone: sends fail, at the latest the second one.
    let mut failed = false;
    for _ in 0..10 {
        failed |= server.send_all(b"anyone?".to_vec(), None).await.0.is_err();
        rt::sleep(Duration::from_millis(1)).await;
    }
    assert!(failed);
}

pub async fn a_shutdown_ends_both_sides() {
    let (client, server, _listener) = pair(tcp()).await;
    let reader = client.clone();
    let waits = rt::spawn(Class::Request, "waits", async move { recv_exact(&reader, 1).await });
    rt::sleep(Duration::from_millis(1)).await;
    client.shutdown();
    assert_eq!(waits.await.unwrap().unwrap(), b"");
    assert_eq!(recv_exact(&server, 1).await.unwrap(), b"");
    assert!(client.send_all(b"x".to_vec(), None).await.0.is_err());
}

pub async fn a_refused_connection_is_an_error() {
    let (_client, _server, listener) = pair(tcp()).await;
    let at = listener.local_endpoint().unwrap();
    drop(listener);
    assert_eq!(Stream::connect(&at).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert!(Stream::connect(&unix()).await.is_err());
}

pub async fn a_cancelled_receive_gives_its_memory_back_later() {
    let (client, server, _listener) = pair(tcp()).await;
    for _ in 0..100 {
        let receive = server.recv(DmaBuf::new(4096), 0..4096);
        assert!(rt::timeout(Duration::from_micros(50), receive).await.is_err());
    }
    rt::sleep(Duration::from_millis(1)).await; // the last cancellation is over
    client.send_all(b"after".to_vec(), None).await.0.unwrap();
    assert_eq!(recv_exact(&server, 5).await.unwrap(), b"after");
}

pub async fn datagrams_carry_their_sender() {
    let (a, b) = (
        Datagram::bind("127.0.0.1:0".parse().unwrap()).unwrap(),
        Datagram::bind("127.0.0.1:0".parse().unwrap()).unwrap(),
    );
    let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    let answers = rt::spawn(Class::Request, "answers", async move {
        let mut buf = [0; 100];
        for _ in 0..20 {
            let (n, from) = b.recv_from(&mut buf).await.unwrap();
            assert_eq!(from, to_a);
            b.send_to(&buf[..n], from).await.unwrap();
        }
    });
    for i in 0..20u8 {
        a.send_to(&[i; 50], to_b).await.unwrap();
        let mut buf = [0; 100];
        let (n, from) = a.recv_from(&mut buf).await.unwrap();
        assert_eq!((&buf[..n], from), (&[i; 50][..], to_b));
    }
    answers.await.unwrap();
}
