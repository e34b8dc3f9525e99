//! Credentials of the TURN server that calls go through: <https://spec.matrix.org/v1.19/client-server-api/#voip>.

use crate::{Core, TurnAccess};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use ruma::UserId;
use sha1::Sha1;
use std::time::Duration;

/// What a client needs to use the TURN server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnCredentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
    /// Where the servers are.
    pub uris: Vec<String>,
    /// How long this is good.
    pub lifetime: Duration,
}

/// Credentials for a user; none where there is no TURN server, or none for guests.
pub fn credentials(core: &Core, user: &UserId, guest: bool) -> Option<TurnCredentials> {
    let turn = core.settings.accounts.turn.as_ref().filter(|turn| turn.guests || !guest)?;
    let (username, password) = match &turn.access {
        TurnAccess::Password { username, password } => (username.clone(), password.clone()),
        TurnAccess::SharedSecret(secret) => {
            time_limited(secret, core.now() / 1000 + turn.lifetime.as_secs(), user)?
        }
    };
    Some(TurnCredentials { username, password, uris: turn.uris.clone(), lifetime: turn.lifetime })
}

/// As TURN servers check them: the name is when it ends and whose it is, the password its HMAC-SHA1.
fn time_limited(secret: &str, until: u64, user: &UserId) -> Option<(String, String)> {
    let username = format!("{until}:{user}");
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).ok()?;
    mac.update(username.as_bytes());
    let password = STANDARD.encode(mac.finalize().into_bytes());
    Some((username, password))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::user_id;

    #[test]
    fn passwords_are_those_that_turn_servers_expect() {
        // printf %s '1443779631:@user:example.com' | openssl dgst -sha1 -hmac n0t4ctuallyasecret -binary | base64
        let made = time_limited("n0t4ctuallyasecret", 1_443_779_631, user_id!("@user:example.com")).unwrap();
        assert_eq!(
            made,
            ("1443779631:@user:example.com".to_owned(), "aievM26gglo+IN5ZwMCyrXQp870=".to_owned())
        );
    }
}
