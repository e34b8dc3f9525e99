//! HTTP as it goes over the line, without a library: what asks costs little beside what is asked.

use crate::harness::http::Account;
use reqwest::Method;
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered(u16),
    /// 429, with the header that says when to come back.
    TooMuch,
    Broken,
}

/// A request with a body.
pub fn request(method: &str, path: &str, token: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A connection that is kept, and made again when it breaks.
pub struct Line {
    port: u16,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Line {
    pub fn new(port: u16) -> Line {
        Line { port, stream: None, buffer: Vec::with_capacity(2048) }
    }

    pub async fn ask(&mut self, request: &[u8]) -> Outcome {
        match tokio::time::timeout(PATIENCE, self.exchange(request)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => {
                self.stream = None;
                Outcome::Broken
            }
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<Outcome> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        stream.write_all(request).await?;
        self.buffer.clear();
        let (head, length) = loop {
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(end) = self.buffer.windows(4).position(|end| end == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
                let field = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length = field.and_then(|length| length.parse::<usize>().ok());
                let length = length.ok_or(io::ErrorKind::InvalidData)?;
                break (head, end + 4 + length);
            }
        };
        while self.buffer.len() < length {
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if head.contains("connection: close") {
            self.stream = None;
        }
        let status =
            head.get(9..12).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        if status == 429 && head.contains("\nretry-after: ") {
            return Ok(Outcome::TooMuch);
        }
        Ok(Outcome::Answered(status))
    }
}

/// Connections that ask for a file of `length` bytes and take nothing of it.
pub async fn dawdle(person: &Account, port: u16, length: usize, count: usize) -> Vec<TcpStream> {
    let content = Value::String("x".repeat(length));
    let made = person.sure(Method::POST, "/_matrix/media/v3/upload", &content).await;
    let file = made["content_uri"].as_str().unwrap().trim_start_matches("mxc://").to_owned();
    let request = request("GET", &format!("/_matrix/client/v1/media/download/{file}"), &person.token, b"");
    let mut dawdlers = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        stream.write_all(&request).await.unwrap();
        dawdlers.push(stream);
    }
    dawdlers
}

/// How much there is yet to be taken of a file.
pub async fn takes_the_rest(mut dawdler: TcpStream) -> usize {
    let mut buffer = vec![0; 64 * 1024];
    let mut all = 0;
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(PATIENCE, dawdler.read(&mut buffer)).await {
        all += count;
    }
    all
}
