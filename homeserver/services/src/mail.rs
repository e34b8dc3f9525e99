//! Mail: letters wait in memory and go to the organisation's SMTP server one after another, beside requests, so that
//! how long a request takes says nothing about whether a letter went out.
//!
//! A letter that waits when the node stops is lost; who waits for it asks for another.

use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Letters that wait at most: people of a large organisation who all register on one morning. About 4 KiB each.
const WAITING: usize = 1000;
/// Letters on their way at once: mail servers count connections of one client.
const AT_ONCE: usize = 4;
/// One conversation with the mail server. Some make strangers wait a while before they answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// Pauses between tries. Servers that do not know us yet say "later" and mean minutes.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(20), Duration::from_mins(2), Duration::from_mins(6)];

/// How the connection to the mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailTls {
    /// TLS from the first byte.
    Tls,
    /// TLS after `STARTTLS`, never without.
    StartTls,
    /// Not at all: for a mail server on the same machine.
    None,
}

/// Where letters are handed in, and whose they are.
#[derive(Clone)]
pub struct MailSettings {
    /// The name or address of the mail server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The protection of the connection.
    pub tls: MailTls,
    /// Name and password, where the server asks for them.
    pub credentials: Option<(String, String)>,
    /// The sender: an address, or a name with an address in angle brackets.
    pub from: String,
    /// Certificate authorities that are trusted beside the system's, DER.
    pub extra_roots: Vec<Vec<u8>>,
    /// What we call ourselves to the mail server.
    pub server_name: String,
}

impl std::fmt::Debug for MailSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MailSettings({}:{})", self.host, self.port)
    }
}

/// Why there is no mail.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// The settings are wrong.
    #[error("{0}")]
    Settings(String),
    /// Too many letters wait.
    #[error("too many letters wait to be sent")]
    Busy,
    /// The letter cannot be written.
    #[error("the letter cannot be written: {0}")]
    Letter(String),
}

/// A letter to one person.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The address.
    pub to: String,
    /// The subject.
    pub subject: String,
    /// What it says, as text.
    pub text: String,
    /// What it says, as HTML.
    pub html: String,
}

/// Hands in letters. A handle, cheap to clone.
#[derive(Clone)]
pub struct Mailer {
    from: Mailbox,
    queue: mpsc::Sender<Message>,
}

impl Mailer {
    /// Starts to send what [`Mailer::send`] hands in, until `stop` is cancelled. Needs a runtime.
    ///
    /// # Errors
    /// [`MailError::Settings`].
    pub fn start(settings: &MailSettings, stop: CancellationToken) -> Result<Mailer, MailError> {
        let from =
            settings.from.parse().map_err(|error| MailError::Settings(format!("email.from: {error}")))?;
        let transport = transport(settings)?;
        let (queue, letters) = mpsc::channel(WAITING);
        tokio::spawn(stop.run_until_cancelled_owned(deliver(transport, letters)));
        Ok(Mailer { from, queue })
    }

    /// Hands a letter in. It goes out soon, or is given up after some tries.
    ///
    /// # Errors
    /// [`MailError::Busy`], [`MailError::Letter`].
    pub fn send(&self, letter: Letter) -> Result<(), MailError> {
        let address: Address = letter.to.parse().map_err(|error| MailError::Letter(format!("{error}")))?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, address))
            .subject(letter.subject)
            .message_id(None)
            .multipart(MultiPart::alternative_plain_html(letter.text, letter.html))
            .map_err(|error| MailError::Letter(error.to_string()))?;
        self.queue.try_send(message).map_err(|_| MailError::Busy)
    }
}

fn transport(settings: &MailSettings) -> Result<AsyncSmtpTransport<Tokio1Executor>, MailError> {
    let wrong = |error: lettre::transport::smtp::Error| MailError::Settings(format!("email: {error}"));
    let parameters = || {
        let mut builder = TlsParameters::builder(settings.host.clone());
        for root in &settings.extra_roots {
            builder = builder.add_root_certificate(Certificate::from_der(root.clone()).map_err(wrong)?);
        }
        builder.build().map_err(wrong)
    };
    let tls = match settings.tls {
        MailTls::Tls => Tls::Wrapper(parameters()?),
        MailTls::StartTls => Tls::Required(parameters()?),
        MailTls::None => Tls::None,
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&settings.host)
        .port(settings.port)
        .tls(tls)
        .timeout(Some(PATIENCE))
        .hello_name(ClientId::Domain(settings.server_name.clone()));
    if let Some((name, password)) = &settings.credentials {
        builder = builder.credentials(Credentials::new(name.clone(), password.clone()));
    }
    Ok(builder.build())
}

/// Sends letters until nobody can hand in any more.
async fn deliver(transport: AsyncSmtpTransport<Tokio1Executor>, mut letters: mpsc::Receiver<Message>) {
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(letter) = letters.recv().await {
        let Ok(permit) = std::sync::Arc::clone(&permits).acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        let transport = transport.clone();
        tasks.spawn(async move {
            let mut permit = Some(permit);
            for pause in PAUSES.iter().map(Some).chain([None]) {
                match transport.send(letter.clone()).await {
                    Ok(_) => {
                        metrics::counter!("waxwing_mail_total", "result" => "sent").increment(1);
                        return;
                    }
                    // What the server says may quote the letter: only its kind is told.
                    Err(error) => tracing::warn!(
                        permanent = error.is_permanent(),
                        status = ?error.status().map(|status| status.to_string()),
                        "the mail server did not take a letter"
                    ),
                }
                let Some(pause) = pause else { break };
                // Others may go meanwhile.
                drop(permit.take());
                tokio::time::sleep(*pause).await;
            }
            metrics::counter!("waxwing_mail_total", "result" => "given_up").increment(1);
        });
    }
}
