//! The line between one node and the database, or NATS: it can be cut, fall silent, lead elsewhere, and mistreat hints.

use crate::harness::dice::Dice;
use crate::node::free_port;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Open,
    /// Connections end, new ones are refused.
    Cut,
    /// Nothing comes through, and nobody says so.
    Silent,
    /// Connections that carry hints end; the others stay.
    NoBus,
}

/// What is spoken on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Postgres,
    Nats,
}

/// What all connections of a line share.
struct Shared {
    protocol: Protocol,
    line: watch::Receiver<Line>,
    target: AtomicU16,
    dice: Arc<Dice>,
    /// Hints are dropped, repeated and reordered.
    mangles: AtomicBool,
}

pub struct Wire {
    pub port: u16,
    line: watch::Sender<Line>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Wire {
    /// A line to what listens at `target`.
    pub async fn start(protocol: Protocol, target: u16, dice: Arc<Dice>) -> Wire {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let (line, watched) = watch::channel(Line::Open);
        let mangles = AtomicBool::new(false);
        let shared = Shared { protocol, line: watched, target: target.into(), dice, mangles };
        let shared = Arc::new(shared);
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Wire { port, line, shared, task }
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    pub fn mangle_hints(&self, whether: bool) {
        self.shared.mangles.store(whether, Ordering::Relaxed);
    }

    /// New connections lead to this port.
    pub fn lead_to(&self, target: u16) {
        self.shared.target.store(target, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(connect(near, Arc::clone(&shared)));
    }
}

async fn connect(near: TcpStream, shared: Arc<Shared>) {
    let mut line = shared.line.clone();
    // What comes in while the line is silent waits.
    if line.wait_for(|line| *line != Line::Silent).await.is_err() || *line.borrow() == Line::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(("127.0.0.1", shared.target.load(Ordering::Relaxed))).await else {
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    // NATS carries nothing else.
    let carries_hints = Arc::new(AtomicBool::new(shared.protocol == Protocol::Nats));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::select! {
        () = ask(near_in, far_out, line.clone(), &carries_hints) => {}
        () = answer(far_in, near_out, line.clone(), &carries_hints, &shared) => {}
        () = ended(line, &carries_hints) => {}
    }
}

/// Returns when the line is cut for this connection.
async fn ended(mut line: watch::Receiver<Line>, carries_hints: &AtomicBool) {
    loop {
        let now = *line.borrow_and_update();
        if now == Line::Cut || now == Line::NoBus && carries_hints.load(Ordering::Relaxed) {
            return;
        }
        if line.changed().await.is_err() {
            return;
        }
    }
}

async fn speaks(line: &mut watch::Receiver<Line>) {
    let _ = line.wait_for(|line| *line != Line::Silent).await;
}

async fn ask(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
    hints: &AtomicBool,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let asked = &buffer[..count];
        let has = |text: &[u8]| asked.windows(text.len()).any(|window| window == text);
        if !hints.load(Ordering::Relaxed) && (has(b"LISTEN") || has(b"pg_notify")) {
            hints.store(true, Ordering::Relaxed);
        }
        if hints.load(Ordering::Relaxed) && *line.borrow() == Line::NoBus {
            return;
        }
        speaks(&mut line).await;
        if to.write_all(asked).await.is_err() {
            return;
        }
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
    hints: &AtomicBool,
    shared: &Shared,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut frames = Frames::default();
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        speaks(&mut line).await;
        let mangles = hints.load(Ordering::Relaxed) && shared.mangles.load(Ordering::Relaxed);
        let written = if mangles || !frames.is_empty() {
            to.write_all(&frames.mangled(shared.protocol, &buffer[..count], mangles, &shared.dice)).await
        } else {
            to.write_all(&buffer[..count]).await
        };
        if written.is_err() {
            return;
        }
    }
}

/// The server's messages. PostgreSQL: a letter, four bytes of length, content. NATS: a line, and after one that begins with
/// `MSG` and ends with a length so many bytes and an end of line.
#[derive(Default)]
struct Frames {
    rest: Vec<u8>,
    held: Option<Vec<u8>>,
}

impl Protocol {
    /// How long the first message is, when it is whole, and whether it is a hint.
    fn first(self, bytes: &[u8]) -> Option<(usize, bool)> {
        let (length, hint) = match self {
            Protocol::Postgres => {
                let length = bytes.get(1..5)?;
                let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
                (length as usize + 1, bytes[0] == b'A')
            }
            Protocol::Nats => {
                let line = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
                let text = String::from_utf8_lossy(&bytes[..line - 2]);
                match text.strip_prefix("MSG ").and_then(|rest| rest.rsplit(' ').next()) {
                    Some(payload) => (line + payload.parse::<usize>().expect("a length") + 2, true),
                    None => (line, false),
                }
            }
        };
        (bytes.len() >= length).then_some((length, hint))
    }
}

impl Frames {
    fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.held.is_none()
    }

    /// The same messages, but for hints, of which some are dropped, repeated, or kept for later.
    fn mangled(&mut self, protocol: Protocol, came: &[u8], mangles: bool, dice: &Dice) -> Vec<u8> {
        self.rest.extend_from_slice(came);
        let mut out = Vec::with_capacity(self.rest.len());
        while let Some((length, hint)) = protocol.first(&self.rest) {
            let frame: Vec<u8> = self.rest.drain(..length).collect();
            if !hint || !mangles {
                out.extend(frame);
                continue;
            }
            match dice.below(4) {
                0 => {}
                1 => out.extend(frame.repeat(3)),
                2 => self.held = Some(frame),
                _ => out.extend(frame),
            }
            if dice.below(2) == 0 {
                out.extend(self.held.take().unwrap_or_default());
            }
        }
        if !mangles {
            out.extend(self.held.take().unwrap_or_default());
        }
        out
    }
}
