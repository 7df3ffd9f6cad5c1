//! Just enough HTTP for a monitoring system: GET /metrics, and /status as JSON; one answer per connection. At most [`SCRAPES`] at once, each with
//! [`REQUEST_BYTES`] of request and [`PATIENCE`] to send it: a slow or hostile reader costs its own connection alone.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use vellum_base::{BLOCK_SIZE, DmaBuf};
use vellum_rt::net::{Endpoint, Listener, Stream};
use vellum_rt::{Class, JoinHandle, spawn, timeout};

use super::render;

const SCRAPES: usize = 8;
const REQUEST_BYTES: usize = BLOCK_SIZE;
const PATIENCE: Duration = Duration::from_secs(5);

/// The status, which either page shows.
pub(crate) type Source = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = Value>>>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    Metrics,
    Status,
}

/// Answers on `at` until the handle's task is cancelled. Gives the bound endpoint too.
pub(crate) fn serve(at: &Endpoint, source: Source) -> io::Result<(Endpoint, JoinHandle<()>)> {
    let listener = Listener::bind(at)?;
    let local = listener.local_endpoint()?;
    let open = Rc::new(Cell::new(0usize));
    let task = spawn(Class::Scrub, "metrics", async move {
        loop {
            let Ok(stream) = listener.accept().await else { continue };
            if open.get() >= SCRAPES {
                stream.shutdown();
                continue;
            }
            open.set(open.get() + 1);
            let (source, open) = (source.clone(), open.clone());
            spawn(Class::Scrub, "scrape", async move {
                // Whatever goes wrong concerns who asked.
                let _ = timeout(PATIENCE, answer(&stream, source)).await;
                stream.shutdown();
                open.set(open.get() - 1);
            })
            .detach();
        }
    });
    Ok((local, task))
}

async fn answer(stream: &Stream, source: Source) -> io::Result<()> {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    let (status, kind, body) = match request(stream).await? {
        Ok(Page::Metrics) => ("200 OK", TEXT, render(&source().await)),
        Ok(Page::Status) => ("200 OK", "application/json", source().await.to_string()),
        Err(status) => (status, TEXT, format!("{status}\n")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let (sent, _) = stream.send_all([head.into_bytes(), body.into_bytes()].concat(), None).await;
    sent
}

/// Reads a request to its empty line; an error is the status to answer with.
async fn request(stream: &Stream) -> io::Result<Result<Page, &'static str>> {
    let mut buf = DmaBuf::new(REQUEST_BYTES);
    let mut len = 0;
    loop {
        if len == REQUEST_BYTES {
            return Ok(Err("431 Request Header Fields Too Large"));
        }
        let (got, filled) = stream.recv(buf, len..REQUEST_BYTES).await;
        buf = filled;
        match got? {
            0 => return Ok(Err("400 Bad Request")),
            n => len += n,
        }
        if buf[..len].windows(4).any(|w| w == b"\r\n\r\n") {
            break;
        }
    }
    let line = buf[..len].split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    Ok(match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics" | b"/")) => Ok(Page::Metrics),
        (Some(b"GET"), Some(b"/status")) => Ok(Page::Status),
        (Some(b"GET"), Some(_)) => Err("404 Not Found"),
        (Some(_), Some(_)) => Err("405 Method Not Allowed"),
        _ => Err("400 Bad Request"),
    })
}
