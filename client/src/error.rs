//! The one error type of the library. Each variant says whose turn it is: the server's, the network's, ours or
//! the caller's. No variant carries a token, a password or a key.

use std::{path::PathBuf, time::Duration};

use client_ruma::{
    OwnedRoomId, OwnedUserId,
    api::{
        client::uiaa::{UiaaInfo, UiaaResponse},
        error::{Error as MatrixError, IntoHttpError},
    },
};
use matrix_sdk_crypto::{
    CryptoStoreError, DecryptorError, MegolmError, OlmError, SecretImportError, SignatureError,
};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the server could not be reached: {}", root_cause(.0))]
    Transport(reqwest::Error),
    #[error("the server answered {0}")]
    Server(Box<MatrixError>),
    #[error("the server asks for authentication this client cannot give: {0}")]
    AuthenticationStage(String),
    #[error("the server asks for further authentication")]
    AuthenticationRequired(Box<UiaaInfo>),
    #[error("the server asks to wait {wait:?}, longer than this client is willing to")]
    RateLimited { wait: Duration },
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the answer could not be read: {0}")]
    Answer(String),
    #[error("the request could not be built: {0}")]
    Request(#[from] IntoHttpError),
    #[error("not a homeserver address: {0}")]
    Address(String),

    #[error("no session in {0}: log in or register first")]
    NotLoggedIn(PathBuf),
    #[error("{0} already holds a session: log out first, or choose another directory")]
    AlreadyLoggedIn(PathBuf),
    #[error("{0} is in use by another process")]
    HomeInUse(PathBuf),
    #[error("cannot read or write {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("damaged file {path}: {source}")]
    DamagedFile { path: PathBuf, source: serde_json::Error },
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),

    #[error("{0} is not a room of this account")]
    UnknownRoom(OwnedRoomId),
    #[error("{0} is not encrypted: this client sends sealed letters only")]
    NotEncrypted(OwnedRoomId),
    #[error("this event carries no attachment")]
    NoAttachment,
    #[error("waited {after:?} for {what}")]
    Timeout { what: String, after: Duration },

    #[error("key store: {0}")]
    CryptoStore(#[from] CryptoStoreError),
    #[error("key store: {0}")]
    OpenStore(#[from] matrix_sdk_sqlite::OpenStoreError),
    #[error("encryption: {0}")]
    Olm(#[from] Box<OlmError>),
    #[error("encryption: {0}")]
    Megolm(#[from] Box<MegolmError>),
    #[error("signature: {0}")]
    Signature(#[from] SignatureError),
    #[error("cross-signing keys: {0}")]
    SecretImport(#[from] SecretImportError),
    #[error("attachment: {0}")]
    Attachment(#[from] DecryptorError),
    #[error("{0} has no device or identity to verify")]
    NothingToVerify(OwnedUserId),
    #[error("the verification was cancelled: {0}")]
    VerificationCancelled(String),
    #[error("key backup: {0}")]
    Backup(String),
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(error)
    }
}

/// "Connection refused" says more than "error sending request".
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

impl From<OlmError> for Error {
    fn from(error: OlmError) -> Self {
        Self::Olm(Box::new(error))
    }
}

impl From<MegolmError> for Error {
    fn from(error: MegolmError) -> Self {
        Self::Megolm(Box::new(error))
    }
}

impl From<MatrixError> for Error {
    fn from(error: MatrixError) -> Self {
        Self::Server(Box::new(error))
    }
}

impl From<UiaaResponse> for Error {
    fn from(response: UiaaResponse) -> Self {
        match response {
            UiaaResponse::AuthResponse(info) => Self::AuthenticationRequired(Box::new(info)),
            UiaaResponse::MatrixError(error) => Self::Server(Box::new(error)),
        }
    }
}

impl Error {
    /// The Matrix error code, when the server gave one.
    pub fn errcode(&self) -> Option<String> {
        match self {
            Self::Server(error) => error.error_kind().map(|kind| kind.errcode().to_string()),
            _ => None,
        }
    }

    /// The HTTP status, when the server answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Server(error) => Some(error.status_code.as_u16()),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }
}
