//! The form of e-mail addresses in which they are kept and compared.

use lettre::Address;

/// Longer addresses cannot be delivered to (RFC 5321, 4.5.3.1.3, without the angle brackets).
const LONGEST: usize = 254;

/// The address in small letters; none: it is no address. Mail servers tell large from small letters only in theory,
/// and people do not.
pub(super) fn canonical(text: &str) -> Option<String> {
    let text = text.trim();
    if text.len() > LONGEST || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return None;
    }
    let address: Address = text.parse().ok()?;
    let (user, domain) = (address.user(), address.domain());
    if user.starts_with('"') || !domain.contains('.') && domain != "localhost" {
        return None;
    }
    Some(format!("{}@{}", user.to_lowercase(), domain.to_lowercase()))
}

/// What stands behind the @.
pub(super) fn domain(address: &str) -> &str {
    address.rsplit('@').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_lowered_and_checked() {
        assert_eq!(canonical(" Alice+Tag@Example.ORG ").as_deref(), Some("alice+tag@example.org"));
        for wrong in [
            "",
            "alice",
            "@example.org",
            "alice@",
            "a b@example.org",
            "alice@example.org\r\nBcc: x@y.z",
            "alice@example.org,bob@example.org",
            "alice@@example.org",
            "\"a b\"@example.org",
            "alice@example",
            "<alice@example.org>",
        ] {
            assert_eq!(canonical(wrong), None, "{wrong}");
        }
        assert_eq!(canonical(&format!("{}@example.org", "a".repeat(300))), None);
        assert_eq!(domain("alice@example.org"), "example.org");
    }
}
