//! A mail server on the loopback, as strict as SMTP is: commands in their order, lines that end in CR and LF and are not
//! too long, bytes of seven bits only, a name and a password before anything else where it wants them, and TLS before
//! those. <https://www.rfc-editor.org/rfc/rfc5321>

use super::node::free_port;
use rustls::pki_types::PrivateKeyDer;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// How long a letter may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// In which nothing more comes when nothing more is to come.
const QUIET: Duration = Duration::from_millis(600);
/// The longest line without its end (RFC 5321, 4.5.3.1.6).
const LONGEST_LINE: usize = 998;
/// The name and password that it wants, as `AUTH PLAIN` sends them: `\0waxwing\0feather`.
const CREDENTIALS: &str = "AHdheHdpbmcAZmVhdGhlcg==";

/// A letter that was delivered.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub from: String,
    pub to: String,
    pub data: String,
}

impl Delivered {
    /// A header.
    pub fn header(&self, name: &str) -> String {
        let head = self.data.split("\r\n\r\n").next().unwrap();
        let unfolded = head.replace("\r\n ", " ").replace("\r\n\t", " ");
        let found = unfolded.split("\r\n").find_map(|line| line.strip_prefix(&format!("{name}: ")));
        found.unwrap_or_else(|| panic!("no {name} in\n{head}")).to_owned()
    }

    /// The part for people whose programs show plain text.
    pub fn text(&self) -> String {
        let part = self.data.split("text/plain").nth(1).expect("a part in plain text");
        let (head, body) = part.split_once("\r\n\r\n").unwrap();
        let body = body.split("\r\n--").next().unwrap();
        if head.contains("quoted-printable") { unquoted(body) } else { body.replace("\r\n", "\n") }
    }

    /// Path and query of the one link in it.
    pub fn link(&self) -> String {
        let text = self.text();
        let at = text.find("http").unwrap_or_else(|| panic!("no link in\n{text}"));
        let link = text[at..].split_whitespace().next().unwrap();
        let url = url::Url::parse(link).unwrap();
        format!("{}?{}", url.path(), url.query().unwrap())
    }
}

fn unquoted(text: &str) -> String {
    let text = text.replace("=\r\n", "").replace("\r\n", "\n");
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        if *first == b'=' {
            let code = std::str::from_utf8(&more[..2]).unwrap();
            out.push(u8::from_str_radix(code, 16).unwrap());
            rest = &more[2..];
        } else {
            out.push(*first);
            rest = more;
        }
    }
    String::from_utf8(out).unwrap()
}

#[derive(Default)]
struct Seen {
    letters: Vec<Delivered>,
    problems: Vec<String>,
    /// Connections that are told to come back later.
    busy: usize,
}

/// The server.
pub struct MailServer {
    port: u16,
    tls: bool,
    authority: Option<tempfile::NamedTempFile>,
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl MailServer {
    /// With `tls` it takes nothing before `STARTTLS` and a login.
    pub async fn start(tls: bool) -> MailServer {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let (acceptor, authority) = if tls { certificate() } else { (None, None) };
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let ended = match Talk::new(&seen, acceptor.is_some(), false).run(&mut stream).await {
                        Ok(End::StartTls) => {
                            let secured = acceptor.unwrap().accept(stream.into_inner()).await;
                            match secured {
                                Ok(stream) => {
                                    Talk::new(&seen, true, true).run(&mut BufReader::new(stream)).await
                                }
                                Err(error) => Err(error),
                            }
                        }
                        other => other,
                    };
                    if let Err(error) = ended {
                        seen.lock().unwrap().problems.push(error.to_string());
                    }
                });
            }
        });
        MailServer { port, tls, authority, seen, task }
    }

    /// What makes a node use it.
    pub fn settings(&self) -> Vec<String> {
        let mut settings =
            vec![format!("email.port={}", self.port), "email.from=Aviary <birds@aviary.example>".to_owned()];
        if let Some(authority) = &self.authority {
            settings.extend([
                "email.server=localhost".to_owned(),
                "email.username=waxwing".to_owned(),
                "email.password=feather".to_owned(),
                format!("tls.extra_roots=[\"{}\"]", authority.path().display()),
            ]);
        } else {
            settings.extend(["email.server=127.0.0.1".to_owned(), "email.tls=none".to_owned()]);
        }
        settings
    }

    /// The next `count` connections are told to come back later.
    pub fn busy(&self, count: usize) {
        self.seen.lock().unwrap().busy = count;
    }

    /// The next letter, which must be to this address, and makes sure that no other comes.
    pub async fn take(&self, to: &str) -> Delivered {
        let until = Instant::now() + PATIENCE;
        loop {
            {
                let seen = self.seen.lock().unwrap();
                assert!(seen.problems.is_empty(), "{:#?}", seen.problems);
                if !seen.letters.is_empty() {
                    break;
                }
            }
            assert!(Instant::now() < until, "no letter to {to} came (TLS: {})", self.tls);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(QUIET).await;
        let mut letters = std::mem::take(&mut self.seen.lock().unwrap().letters);
        assert_eq!(letters.len(), 1, "{letters:#?}");
        let letter = letters.remove(0);
        assert_eq!(letter.to, to);
        assert_eq!(letter.from, "birds@aviary.example");
        letter
    }

    /// Makes sure that no letter comes.
    pub async fn nothing(&self) {
        tokio::time::sleep(QUIET).await;
        let seen = self.seen.lock().unwrap();
        assert!(
            seen.letters.is_empty() && seen.problems.is_empty(),
            "{:#?} {:#?}",
            seen.letters,
            seen.problems
        );
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A certificate for `localhost`, and the file of the authority that signed it.
fn certificate() -> (Option<TlsAcceptor>, Option<tempfile::NamedTempFile>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), &made.cert.pem());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Some(TlsAcceptor::from(Arc::new(config))), Some(file))
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

enum End {
    Quit,
    StartTls,
}

/// One conversation.
struct Talk<'a> {
    seen: &'a Mutex<Seen>,
    wants_tls: bool,
    secured: bool,
    greeted: bool,
    known: bool,
    from: Option<String>,
    to: Option<String>,
}

impl<'a> Talk<'a> {
    fn new(seen: &'a Mutex<Seen>, wants_tls: bool, secured: bool) -> Talk<'a> {
        Talk { seen, wants_tls, secured, greeted: false, known: !wants_tls, from: None, to: None }
    }

    async fn run<S>(mut self, stream: &mut BufReader<S>) -> io::Result<End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if !self.secured {
            let busy = {
                let mut seen = self.seen.lock().unwrap();
                let busy = seen.busy > 0;
                seen.busy = seen.busy.saturating_sub(1);
                busy
            };
            if busy {
                say(stream, "421 aviary.example is busy, come back later").await?;
                return Ok(End::Quit);
            }
            say(stream, "220 aviary.example ESMTP").await?;
        }
        loop {
            let Some(line) = line(stream).await? else { return Ok(End::Quit) };
            let verb = line.split(' ').next().unwrap().to_ascii_uppercase();
            let rest = line[verb.len()..].trim_start();
            match verb.as_str() {
                "QUIT" => {
                    say(stream, "221 bye").await?;
                    return Ok(End::Quit);
                }
                "STARTTLS" if self.greeted && self.wants_tls && !self.secured => {
                    say(stream, "220 go on").await?;
                    return Ok(End::StartTls);
                }
                "DATA" if self.from.is_some() && self.to.is_some() => {
                    say(stream, "354 go on").await?;
                    let data = data(stream).await?;
                    let (from, to) = (self.from.take().unwrap(), self.to.take().unwrap());
                    self.seen.lock().unwrap().letters.push(Delivered { from, to, data });
                    say(stream, "250 taken").await?;
                }
                _ => {
                    let answer = self.answer(&verb, rest)?;
                    say(stream, &answer).await?;
                }
            }
        }
    }

    fn answer(&mut self, verb: &str, rest: &str) -> io::Result<String> {
        let path = |text: &str, prefix: &str| {
            let text = text.strip_prefix(prefix)?.strip_prefix('<')?.strip_suffix('>')?;
            Some(text.to_owned())
        };
        match verb {
            "EHLO" if !rest.is_empty() => {
                self.greeted = true;
                Ok(match (self.wants_tls, self.secured) {
                    (true, false) => "250-aviary.example\r\n250 STARTTLS".to_owned(),
                    (true, true) => "250-aviary.example\r\n250 AUTH PLAIN".to_owned(),
                    (false, _) => "250 aviary.example".to_owned(),
                })
            }
            "AUTH" if self.greeted && self.secured && rest == format!("PLAIN {CREDENTIALS}") => {
                self.known = true;
                Ok("235 welcome".to_owned())
            }
            "NOOP" | "RSET" => Ok("250 fine".to_owned()),
            "MAIL" if self.greeted && self.known && self.from.is_none() => {
                self.from = path(rest, "FROM:");
                self.from.as_ref().map(|_| "250 fine".to_owned()).ok_or_else(|| odd(verb, rest))
            }
            "RCPT" if self.from.is_some() && self.to.is_none() => {
                self.to = path(rest, "TO:");
                self.to.as_ref().map(|_| "250 fine".to_owned()).ok_or_else(|| odd(verb, rest))
            }
            _ => Err(odd(verb, rest)),
        }
    }
}

fn odd(verb: &str, rest: &str) -> io::Error {
    io::Error::other(format!("out of order or not understood: {verb} {rest}"))
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>, text: &str) -> io::Result<()> {
    stream.get_mut().write_all(format!("{text}\r\n").as_bytes()).await?;
    stream.get_mut().flush().await
}

/// A line without its end; none at the end of the connection.
async fn line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if stream.read_until(b'\n', &mut bytes).await? == 0 {
        return Ok(None);
    }
    let text = bytes.strip_suffix(b"\r\n").ok_or_else(|| io::Error::other("a line without CR LF"))?;
    if text.len() > LONGEST_LINE || !text.is_ascii() || text.contains(&b'\r') {
        return Err(io::Error::other(format!("a line that is too long or not ASCII: {text:?}")));
    }
    Ok(Some(String::from_utf8(text.to_vec()).unwrap()))
}

async fn data<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> io::Result<String> {
    let mut data = String::new();
    loop {
        let text = line(stream).await?.ok_or_else(|| io::Error::other("the letter has no end"))?;
        if text == "." {
            return Ok(data);
        }
        data.push_str(text.strip_prefix('.').unwrap_or(&text));
        data.push_str("\r\n");
    }
}
