//! Stages of user-interactive authentication that people go through on a page in a browser:
//! <https://spec.matrix.org/v1.19/client-server-api/#fallback>.

use super::addresses::TokenRequest;
use super::uia::{Auth, Refusal, State, ThreepidCreds};
use super::{AccountError, Accounts, UiaError, stage};
use waxwing_model::opaque_id;

/// What somebody filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FallbackInput {
    /// Goes on: nothing to fill in, or the terms are accepted.
    Agree,
    /// A registration token.
    Token(String),
    /// A password, of the one who asked.
    Password(String),
    /// An address that a letter is to be sent to.
    Email(String),
    /// The link in the letter was followed.
    EmailConfirmed,
}

/// Where a stage stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FallbackStep {
    /// It is to be done.
    Open,
    /// A letter is on its way.
    LetterSent,
    /// What was filled in does not fit, and why.
    Refused(&'static str),
    /// It is done: back to the app.
    Done,
}

impl Accounts {
    /// Where a stage of a session stands.
    ///
    /// # Errors
    /// [`AccountError::NoSession`], [`AccountError::InvalidParam`] for a stage that has no page.
    pub async fn fallback_step(&self, session: &str, kind: &str) -> Result<FallbackStep, AccountError> {
        let state = self.fallback_state(session, kind).await?;
        Ok(if state.completed.iter().any(|completed| completed == kind) {
            FallbackStep::Done
        } else if kind == stage::EMAIL && state.page_email.is_some() {
            FallbackStep::LetterSent
        } else {
            FallbackStep::Open
        })
    }

    /// Takes what somebody filled in on the page of a stage.
    ///
    /// # Errors
    /// As [`Accounts::fallback_step`].
    pub async fn uia_fallback(
        &self,
        session: &str,
        kind: &str,
        input: FallbackInput,
    ) -> Result<FallbackStep, UiaError> {
        let mut state = self.fallback_state(session, kind).await?;
        if state.completed.iter().any(|completed| completed == kind) {
            return Ok(FallbackStep::Done);
        }
        let auth = match (kind, input) {
            (stage::EMAIL, FallbackInput::Email(email)) => {
                return self.fallback_letter(session, &mut state, &email).await;
            }
            (stage::EMAIL, FallbackInput::EmailConfirmed) => {
                let creds = state.page_email.clone();
                let creds = creds.map(|(sid, client_secret)| ThreepidCreds { sid, client_secret });
                Auth { threepid_creds: creds, ..Auth::default() }
            }
            (stage::REGISTRATION_TOKEN, FallbackInput::Token(token)) => {
                Auth { token: Some(token), ..Auth::default() }
            }
            (stage::PASSWORD, FallbackInput::Password(password)) if state.user.is_some() => {
                Auth { password: Some(password), ..Auth::default() }
            }
            (stage::DUMMY | stage::TERMS, FallbackInput::Agree) => Auth::default(),
            _ => return Ok(FallbackStep::Refused("Please fill in the form.")),
        };
        let passed: Result<(), Refusal> = self.uia_stage(kind, &auth, &mut state).await?;
        if passed.is_err() {
            return Ok(FallbackStep::Refused(match kind {
                stage::EMAIL => "The link in the letter has not been followed yet.",
                stage::PASSWORD => "That is not the password.",
                _ => "This token is not valid.",
            }));
        }
        state.completed.push(kind.to_owned());
        self.uia_save(session, &state).await?;
        Ok(FallbackStep::Done)
    }

    async fn fallback_letter(
        &self,
        session: &str,
        state: &mut State,
        email: &str,
    ) -> Result<FallbackStep, UiaError> {
        let secret = opaque_id(32);
        let request = TokenRequest {
            purpose: state.purpose(),
            email,
            client_secret: &secret,
            send_attempt: 1,
            next_link: None,
        };
        match self.request_email(request).await {
            Ok(sid) => {
                state.page_email = Some((sid, secret));
                self.uia_save(session, state).await?;
                Ok(FallbackStep::LetterSent)
            }
            Err(AccountError::InvalidParam(_)) => Ok(FallbackStep::Refused("That is not an e-mail address.")),
            Err(AccountError::AddressDenied) => {
                Ok(FallbackStep::Refused("This server does not take addresses of that domain."))
            }
            Err(AccountError::MediumNotSupported) => Ok(FallbackStep::Refused("This server sends no mail.")),
            Err(AccountError::MailBusy) => {
                Ok(FallbackStep::Refused("The letter could not be sent. Please try again later."))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn fallback_state(&self, session: &str, kind: &str) -> Result<State, AccountError> {
        const PAGES: [&str; 5] =
            [stage::DUMMY, stage::TERMS, stage::REGISTRATION_TOKEN, stage::EMAIL, stage::PASSWORD];
        if !PAGES.contains(&kind) {
            return Err(AccountError::InvalidParam("this stage has no page"));
        }
        self.uia_load(session).await?.ok_or(AccountError::NoSession)
    }
}
