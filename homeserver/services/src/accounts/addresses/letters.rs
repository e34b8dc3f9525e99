//! What the letters say. Each is plain text and a small HTML page that says the same.

use super::Purpose;
use crate::mail::Letter;

/// What a letter is about.
pub(super) enum Subject<'a> {
    /// Follow this link to show that the address is yours.
    Confirm {
        /// The page that the link opens.
        link: &'a str,
    },
    /// Somebody wanted to use an address that is an account's already.
    InUse,
    /// Somebody wanted a new password for an address that is no account's.
    Unknown,
}

/// Writes a letter. `organisation` is what the server's people call it, `server` its name.
pub(super) fn letter(
    to: &str,
    purpose: Purpose,
    about: &Subject<'_>,
    organisation: &str,
    server: &str,
) -> Letter {
    let (subject, say) = words(purpose, about, organisation, server);
    let button =
        if purpose == Purpose::Password { "Go on to the new password" } else { "Confirm the address" };
    let end = "If it was not you, you need not do anything: nothing has changed.";
    let (link_text, link_html) = match about {
        Subject::Confirm { link } => (
            format!("{button}:\n\n{link}\n\nThe link is good for an hour.\n\n"),
            format!(
                "<p style=\"margin:28px 0\"><a href=\"{link}\" style=\"background:#1f5fbf;color:#ffffff;\
                 text-decoration:none;padding:12px 20px;border-radius:8px;font-weight:600\">{button}</a></p>\
                 <p style=\"font-size:13px;color:#5a6472\">Or open this address in a browser; it is good for an \
                 hour:<br><a href=\"{link}\" style=\"color:#1f5fbf;word-break:break-all\">{link}</a></p>",
                link = escape(link)
            ),
        ),
        Subject::InUse | Subject::Unknown => (String::new(), String::new()),
    };
    let text = format!("Hello,\n\n{say}\n\n{link_text}{end}\n\n-- \n{organisation}\n");
    let html = format!(
        "<!doctype html><html lang=\"en\"><body style=\"margin:0;background:#f3f5f8\">\
         <div style=\"max-width:520px;margin:0 auto;padding:32px 16px;font-family:system-ui,-apple-system,\
         'Segoe UI',Roboto,sans-serif;font-size:16px;line-height:1.5;color:#1b2430\">\
         <div style=\"background:#ffffff;border-radius:12px;padding:28px\">\
         <p style=\"margin-top:0;font-weight:600\">{organisation}</p><p>{say}</p>{link_html}\
         <p style=\"margin-bottom:0\">{end}</p></div></div></body></html>",
        organisation = escape(organisation),
        say = escape(&say),
    );
    Letter { to: to.to_owned(), subject, text, html }
}

/// The subject and the first paragraph.
fn words(purpose: Purpose, about: &Subject<'_>, organisation: &str, server: &str) -> (String, String) {
    match (about, purpose) {
        (Subject::Confirm { .. }, Purpose::Register) => (
            format!("Confirm your e-mail address for {organisation}"),
            format!("You are about to make a Matrix account on {server} with this e-mail address."),
        ),
        (Subject::Confirm { .. }, Purpose::Add) => (
            format!("Confirm your e-mail address for {organisation}"),
            format!("You are about to add this e-mail address to your Matrix account on {server}."),
        ),
        (Subject::Confirm { .. }, Purpose::Password) => (
            format!("Set a new password for {organisation}"),
            format!(
                "Somebody, most likely you, wants to set a new password for your Matrix account on {server}."
            ),
        ),
        (Subject::InUse, _) => (
            format!("Your e-mail address is in use on {organisation}"),
            format!(
                "Somebody, most likely you, wanted to use this e-mail address for a Matrix account on {server}. \
                 It belongs to an account already: sign in with the address and your password, or, if you have \
                 forgotten it, ask your app for a new password."
            ),
        ),
        (Subject::Unknown, _) => (
            format!("There is no account with your e-mail address on {organisation}"),
            format!(
                "Somebody, most likely you, wanted to set a new password for a Matrix account with this e-mail \
                 address on {server}. There is no such account: perhaps you used another address."
            ),
        ),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_links_are_in_both_parts() {
        let about = Subject::Confirm { link: "https://x/confirm?sid=1&token=2" };
        let letter = letter("a@b.c", Purpose::Register, &about, "Cats & <Dogs>", "x");
        assert!(letter.html.contains("Cats &amp; &lt;Dogs&gt;") && !letter.html.contains("<Dogs>"));
        assert!(letter.html.contains("sid=1&amp;token=2"));
        assert!(letter.text.contains("https://x/confirm?sid=1&token=2\n"));
        assert_eq!(letter.subject, "Confirm your e-mail address for Cats & <Dogs>");
    }

    #[test]
    fn letters_about_nothing_have_no_link() {
        for about in [Subject::InUse, Subject::Unknown] {
            let letter = letter("a@b.c", Purpose::Password, &about, "Org", "x");
            assert!(!letter.text.contains("http") && !letter.html.contains("href"));
        }
    }
}
