//! The grammar of user names: <https://spec.matrix.org/v1.19/appendices/#user-identifiers>.

use super::AccountError;
use ruma::{OwnedUserId, ServerName, UserId};

/// A whole user id may have so many bytes.
const LONGEST_ID: usize = 255;

/// The user id of a new account with this name, in lower case.
pub(super) fn new_user_id(name: &str, server: &ServerName) -> Result<OwnedUserId, AccountError> {
    let name = name.to_ascii_lowercase();
    if name.is_empty() {
        return Err(AccountError::InvalidUsername("the user name is empty"));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._=-/+".contains(c);
    if !name.chars().all(allowed) {
        return Err(AccountError::InvalidUsername("a user name has only the characters a-z, 0-9 and ._=-/+"));
    }
    if name.len() + server.as_str().len() + 2 > LONGEST_ID {
        return Err(AccountError::InvalidUsername("the user name is too long"));
    }
    UserId::parse(format!("@{name}:{server}"))
        .map_err(|_| AccountError::InvalidUsername("the user name makes no user id"))
}

/// The ids that a login may mean, the likeliest first: people write capitals, and old accounts have them.
pub(super) fn login_candidates(user: &str, server: &ServerName) -> Vec<OwnedUserId> {
    let full = if user.starts_with('@') { user.to_owned() } else { format!("@{user}:{server}") };
    let mut ids = Vec::new();
    if let Ok(id) = UserId::parse(full.as_str())
        && id.server_name() == server
    {
        let lower = format!("@{}:{server}", id.localpart().to_lowercase());
        let lower = UserId::parse(lower).ok().filter(|lower| *lower != id);
        ids.push(id);
        ids.extend(lower);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::server_name;

    #[test]
    fn names_are_lowered_and_checked() {
        let server = server_name!("x.example");
        assert_eq!(new_user_id("user-UPPER", server).unwrap(), "@user-upper:x.example");
        for name in ["", "a b", "a!", "é", "a:b", "a\\n"] {
            assert!(matches!(new_user_id(name, server), Err(AccountError::InvalidUsername(_))), "{name}");
        }
        assert!(new_user_id(&"a".repeat(300), server).is_err());
    }

    #[test]
    fn logins_find_names_in_any_case() {
        let server = server_name!("x.example");
        let ids = login_candidates("@Alice:x.example", server);
        assert_eq!(ids, ["@Alice:x.example", "@alice:x.example"]);
        assert_eq!(login_candidates("alice", server), ["@alice:x.example"]);
        assert!(login_candidates("@alice:y.example", server).is_empty());
    }
}
