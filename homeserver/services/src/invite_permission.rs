//! Whom a user lets invite them: account data of the user, acted upon by the server.
//! <https://spec.matrix.org/v1.19/client-server-api/#invite-permission>

use crate::Core;
use ruma::UserId;
use serde::Deserialize;
use waxwing_storage::StoreError;

const STABLE: &str = "m.invite_permission_config";
const MSC4155: &str = "org.matrix.msc4155.invite_permission_config";
/// Patterns that are looked at in one list: an account's own data, but matched on every invitation.
const MAX_PATTERNS: usize = 1000;

/// What happens to an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InviteVerdict {
    /// It arrives.
    Allow,
    /// It arrives but is not shown.
    Ignore,
    /// It is refused: `M_INVITE_BLOCKED`.
    Block,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Stable {
    default_action: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Lists {
    enabled: Option<bool>,
    allowed_users: Vec<String>,
    ignored_users: Vec<String>,
    blocked_users: Vec<String>,
    allowed_servers: Vec<String>,
    ignored_servers: Vec<String>,
    blocked_servers: Vec<String>,
}

/// What becomes of an invitation of `target`, a user of this server, by `inviter`. Data that can't be read allows.
pub async fn invite_verdict(
    core: &Core,
    target: &UserId,
    inviter: &UserId,
) -> Result<InviteVerdict, StoreError> {
    if core.is_notices_user(inviter) {
        return Ok(InviteVerdict::Allow);
    }
    let mut conn = core.store.read().await?;
    if let Some(stable) = conn.account_data_load(target, None, STABLE).await? {
        let stable: Stable = serde_json::from_str(&stable).unwrap_or_default();
        if stable.default_action.as_deref() == Some("block") {
            return Ok(InviteVerdict::Block);
        }
    }
    let Some(lists) = conn.account_data_load(target, None, MSC4155).await? else {
        return Ok(InviteVerdict::Allow);
    };
    Ok(serde_json::from_str::<Lists>(&lists).unwrap_or_default().verdict(inviter))
}

impl Lists {
    fn verdict(&self, inviter: &UserId) -> InviteVerdict {
        if self.enabled == Some(false) {
            return InviteVerdict::Allow;
        }
        let server = inviter.server_name().host();
        let lists = [
            (&self.allowed_users, inviter.as_str(), InviteVerdict::Allow),
            (&self.ignored_users, inviter.as_str(), InviteVerdict::Ignore),
            (&self.blocked_users, inviter.as_str(), InviteVerdict::Block),
            (&self.allowed_servers, server, InviteVerdict::Allow),
            (&self.ignored_servers, server, InviteVerdict::Ignore),
            (&self.blocked_servers, server, InviteVerdict::Block),
        ];
        lists
            .into_iter()
            .find(|(patterns, name, _)| patterns.iter().take(MAX_PATTERNS).any(|pattern| glob(pattern, name)))
            .map_or(InviteVerdict::Allow, |(_, _, verdict)| verdict)
    }
}

/// `*` stands for any text, `?` for one character; case does not matter.
fn glob(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.to_lowercase().chars().collect();
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(sign) if *sign == '?' || *sign == text[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((place, start)) => {
                    at = place + 1;
                    from = start + 1;
                    star = Some((place, start + 1));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|sign| *sign == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_come_before_servers_and_allowing_before_blocking() {
        let lists = Lists {
            allowed_users: vec!["@friend:evil.example".to_owned()],
            blocked_servers: vec!["evil.*".to_owned()],
            ignored_users: vec!["@spam*".to_owned()],
            ..Lists::default()
        };
        let verdict = |user: &str| lists.verdict(&UserId::parse(user).unwrap());
        assert_eq!(verdict("@friend:evil.example"), InviteVerdict::Allow);
        assert_eq!(verdict("@other:evil.example"), InviteVerdict::Block);
        assert_eq!(verdict("@spammer:good.example"), InviteVerdict::Ignore);
        assert_eq!(verdict("@ann:good.example"), InviteVerdict::Allow);
    }

    #[test]
    fn globs() {
        assert!(glob("*.example", "a.EXAMPLE"));
        assert!(glob("a?c*", "abcd"));
        assert!(!glob("a?c", "abcd"));
        assert!(glob("*a*b", "xxaxxbxb"));
    }
}
