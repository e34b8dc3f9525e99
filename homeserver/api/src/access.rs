//! What each client endpoint asks of a request before its handler sees it: by method and path, in one table.

use crate::limits::Limited;
use http::Method;

/// Bodies of requests without an access token: a login or a registration is a few hundred bytes.
const SMALL_BODY: usize = 64 * 1024;
/// Bodies of requests with one. Key backups of a busy account are the largest; an event is at most 64 KiB.
const LARGE_BODY: usize = 16 * 1024 * 1024;

/// Endpoints that guests may use: <https://spec.matrix.org/v1.19/client-server-api/#guest-access>.
/// Every endpoint that asks for no token is open to them too.
const GUESTS: &[(&str, &str)] = &[
    ("GET", "media/download/{server_name}/{media_id}"),
    ("GET", "media/download/{server_name}/{media_id}/{filename}"),
    ("GET", "media/thumbnail/{server_name}/{media_id}"),
    ("GET", "devices"),
    ("GET", "devices/{device_id}"),
    ("PUT", "devices/{device_id}"),
    ("GET", "rooms/{room_id}/context/{event_id}"),
    ("POST", "rooms/{room_id}/join"),
    ("POST", "join/{room_id_or_alias}"),
    ("POST", "keys/upload"),
    ("POST", "keys/query"),
    ("POST", "keys/claim"),
    ("POST", "rooms/{room_id}/leave"),
    ("GET", "rooms/{room_id}/messages"),
    ("GET", "events"),
    ("PUT", "profile/{user_id}/displayname"),
    ("PUT", "profile/{user_id}/{field}"),
    ("DELETE", "profile/{user_id}/{field}"),
    ("GET", "rooms/{room_id}/initialSync"),
    ("PUT", "rooms/{room_id}/send/{event_type}/{txn_id}"),
    ("PUT", "rooms/{room_id}/state/{event_type}/{state_key}"),
    ("GET", "rooms/{room_id}/event/{event_id}"),
    ("GET", "rooms/{room_id}/state/{event_type}/{state_key}"),
    ("GET", "rooms/{room_id}/state"),
    ("GET", "rooms/{room_id}/members"),
    ("GET", "sync"),
    ("POST", "sync"),
    ("POST", "org.matrix.simplified_msc3575/sync"),
    ("PUT", "sendToDevice/{event_type}/{txn_id}"),
    ("GET", "account/whoami"),
    ("GET", "capabilities"),
    ("GET", "pushrules/"),
    ("POST", "user/{user_id}/filter"),
    ("GET", "user/{user_id}/filter/{filter_id}"),
    ("POST", "logout"),
    ("POST", "logout/all"),
    // Whether guests may call is the operator's choice: the handler looks.
    ("GET", "voip/turnServer"),
];

/// What a suspended account may not do: <https://spec.matrix.org/v1.19/client-server-api/#account-suspension>.
/// Redacting others' events is judged by the handler, which knows whose they are.
const NOT_SUSPENDED: &[(&str, &str)] = &[
    ("POST", "rooms/{room_id}/join"),
    ("POST", "join/{room_id_or_alias}"),
    ("POST", "knock/{room_id_or_alias}"),
    ("POST", "rooms/{room_id}/invite"),
    ("POST", "rooms/{room_id}/kick"),
    ("POST", "rooms/{room_id}/ban"),
    ("POST", "rooms/{room_id}/unban"),
    ("POST", "rooms/{room_id}/upgrade"),
    ("POST", "createRoom"),
    ("PUT", "rooms/{room_id}/send/{event_type}/{txn_id}"),
    ("PUT", "rooms/{room_id}/state/{event_type}/{state_key}"),
    ("PUT", "profile/{user_id}/displayname"),
    ("PUT", "profile/{user_id}/avatar_url"),
    ("PUT", "profile/{user_id}/{field}"),
    ("DELETE", "profile/{user_id}/{field}"),
    ("PUT", "directory/room/{room_alias}"),
    ("PUT", "directory/list/room/{room_id}"),
];

/// What a locked account may still do.
const LOCKED: &[(&str, &str)] = &[("POST", "logout"), ("POST", "logout/all")];

const LIMITED: &[(&str, &str, Limited)] = &[
    ("PUT", "rooms/{room_id}/send/{event_type}/{txn_id}", Limited::Message),
    ("PUT", "rooms/{room_id}/state/{event_type}/{state_key}", Limited::Message),
    ("PUT", "rooms/{room_id}/redact/{event_id}/{txn_id}", Limited::Message),
    ("POST", "org.matrix.msc4140/delayed_events/{delay_id}", Limited::Delayed),
    ("POST", "org.matrix.msc4140/delayed_events/{delay_id}/{action}", Limited::Delayed),
    ("POST", "login", Limited::Login),
    ("POST", "refresh", Limited::Login),
    ("POST", "register", Limited::Registration),
    ("GET", "register/available", Limited::Registration),
    ("POST", "register/email/requestToken", Limited::Mail),
    ("POST", "account/3pid/email/requestToken", Limited::Mail),
    ("POST", "account/password/email/requestToken", Limited::Mail),
    ("POST", "org.matrix.msc4108/rendezvous", Limited::Meeting),
    ("GET", "org.matrix.msc4108/rendezvous/{id}", Limited::Meeting),
    ("PUT", "org.matrix.msc4108/rendezvous/{id}", Limited::Meeting),
    ("DELETE", "org.matrix.msc4108/rendezvous/{id}", Limited::Meeting),
    ("POST", "io.element.msc4388/rendezvous", Limited::Meeting),
    ("GET", "io.element.msc4388/rendezvous/{id}", Limited::Meeting),
    ("PUT", "io.element.msc4388/rendezvous/{id}", Limited::Meeting),
    ("DELETE", "io.element.msc4388/rendezvous/{id}", Limited::Meeting),
    ("GET", "register/m.login.registration_token/validity", Limited::Registration),
    ("POST", "rooms/{room_id}/join", Limited::Join),
    ("POST", "join/{room_id_or_alias}", Limited::Join),
    ("POST", "knock/{room_id_or_alias}", Limited::Join),
    ("POST", "rooms/{room_id}/invite", Limited::Invite),
    ("POST", "createRoom", Limited::CreateRoom),
    ("POST", "rooms/{room_id}/upgrade", Limited::CreateRoom),
    ("GET", "media/preview_url", Limited::Preview),
    ("POST", "upload", Limited::Upload),
    ("POST", "create", Limited::Upload),
    ("PUT", "upload/{server_name}/{media_id}", Limited::Upload),
];

/// Endpoints whose requests wait for news: they wait outside the routes.
const POLLS: &[(&str, &str)] =
    &[("GET", "sync"), ("POST", "sync"), ("POST", "org.matrix.simplified_msc3575/sync"), ("GET", "events")];

/// Other endpoints whose requests mostly wait: for clients, or for other servers.
const WAITING: &[(&str, &str)] = &[
    ("POST", "rooms/{room_id}/join"),
    ("POST", "join/{room_id_or_alias}"),
    ("POST", "knock/{room_id_or_alias}"),
    ("GET", "media/download/{server_name}/{media_id}"),
    ("GET", "media/download/{server_name}/{media_id}/{filename}"),
    ("GET", "media/thumbnail/{server_name}/{media_id}"),
    ("GET", "media/preview_url"),
    ("POST", "upload"),
    ("PUT", "upload/{server_name}/{media_id}"),
];

/// What an endpoint asks of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Guests may call it.
    pub guests: bool,
    /// Suspended accounts may call it.
    pub suspended: bool,
    /// Locked accounts may call it.
    pub locked: bool,
    /// The rate limit that it counts for.
    pub limited: Option<Limited>,
    /// The largest body in bytes.
    pub body: usize,
    /// Its requests mostly wait, and do not count as running.
    pub waits: bool,
    /// Its requests wait for news.
    pub polls: bool,
}

/// The rules of an endpoint. `path` is its newest path in ruma's spelling.
pub(crate) fn rules(method: &Method, path: &str, token: bool) -> Rules {
    let tail = tail(path);
    let listed = |list: &[(&str, &str)]| list.contains(&(method.as_str(), tail));
    Rules {
        guests: listed(GUESTS),
        suspended: !listed(NOT_SUSPENDED),
        locked: listed(LOCKED),
        limited: LIMITED
            .iter()
            .find(|(of, at, _)| *of == method.as_str() && *at == tail)
            .map(|(_, _, limited)| *limited),
        body: if token { LARGE_BODY } else { SMALL_BODY },
        waits: listed(WAITING) || listed(POLLS),
        polls: listed(POLLS),
    }
}

/// What stands behind `/_matrix/client/v3/` or the like.
fn tail(path: &str) -> &str {
    path.splitn(5, '/').nth(4).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_found_by_the_tail_of_their_path() {
        let send = rules(&Method::PUT, "/_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}", true);
        assert!(send.guests && !send.suspended && !send.locked);
        assert_eq!(send.limited, Some(Limited::Message));
        let logout = rules(&Method::POST, "/_matrix/client/v3/logout/all", true);
        assert!(logout.locked && logout.suspended && logout.limited.is_none());
        assert!(!rules(&Method::POST, "/_matrix/client/v3/createRoom", true).guests);
        assert!(rules(&Method::GET, "/_matrix/client/v3/sync", true).waits && !send.waits);
    }
}
