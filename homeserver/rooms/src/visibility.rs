//! Who may see an event. A pure decision over memberships and the history visibility at the event.
//! <https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility>

use ruma::events::room::history_visibility::HistoryVisibility;
use ruma::events::room::member::MembershipState;
use serde::Deserialize;
use waxwing_model::Event;

/// The history visibility that a state event sets. No event, or a value that is not understood, means `shared`.
pub fn visibility_of(event: Option<&Event>) -> HistoryVisibility {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: HistoryVisibility,
    }
    match event.and_then(|event| event.content_as::<Content>().ok()).map(|c| c.history_visibility) {
        Some(
            known @ (HistoryVisibility::WorldReadable
            | HistoryVisibility::Invited
            | HistoryVisibility::Joined),
        ) => known,
        _ => HistoryVisibility::Shared,
    }
}

/// The membership that a member event sets; `leave` without one.
pub fn membership_of(event: Option<&Event>) -> MembershipState {
    #[derive(Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    event
        .and_then(|event| event.content_as::<Content>().ok())
        .map_or(MembershipState::Leave, |content| content.membership)
}

/// The circumstances of one event and one viewer.
#[derive(Debug, Clone)]
pub struct View {
    /// The history visibility in the state before the event.
    pub visibility: HistoryVisibility,
    /// The visibility after it; differs only on a history visibility event.
    pub visibility_after: HistoryVisibility,
    /// The viewer's membership in the state before the event.
    pub membership: MembershipState,
    /// The viewer's membership after it; differs only on the viewer's own member event.
    pub membership_after: MembershipState,
    /// Whether the viewer was joined at some time after the event: is joined now, or left later than the event.
    pub joined_later: bool,
}

impl View {
    /// A view of an event that changes neither the visibility nor the viewer's membership.
    pub fn steady(visibility: HistoryVisibility, membership: MembershipState, joined_later: bool) -> View {
        View {
            visibility_after: visibility.clone(),
            visibility,
            membership_after: membership.clone(),
            membership,
            joined_later,
        }
    }
}

/// Whether a user may see the event. Either side of the event suffices where it changes the visibility or the
/// user's own membership.
pub fn user_may_see(view: &View) -> bool {
    [&view.visibility, &view.visibility_after].into_iter().any(|visibility| {
        [&view.membership, &view.membership_after]
            .into_iter()
            .any(|membership| allows(visibility, membership, view.joined_later))
    })
}

fn allows(visibility: &HistoryVisibility, membership: &MembershipState, joined_later: bool) -> bool {
    match (visibility, membership) {
        (HistoryVisibility::WorldReadable, _)
        | (_, MembershipState::Join)
        | (HistoryVisibility::Invited, MembershipState::Invite) => true,
        (HistoryVisibility::Shared, _) => joined_later,
        _ => false,
    }
}

/// What a server's users were, taken together, when an event was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerPresence {
    /// One of its users was joined in the state at the event.
    pub joined: bool,
    /// One of its users was invited in the state at the event.
    pub invited: bool,
}

/// Whether a server may see an event whole; otherwise it gets the redacted form or nothing. A server takes part in
/// the room, or did, when it may ask at all: that is the caller's check.
/// <https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events>
pub fn server_may_see(visibility: &HistoryVisibility, presence: ServerPresence) -> bool {
    match visibility {
        HistoryVisibility::Invited => presence.joined || presence.invited,
        HistoryVisibility::Joined => presence.joined,
        // World readable and shared; anything not understood counts as shared.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HistoryVisibility as V;
    use MembershipState as M;

    #[test]
    fn follows_the_five_rules() {
        // visibility, membership at the event, joined later, allowed
        let table = [
            (V::WorldReadable, M::Leave, false, true),
            (V::WorldReadable, M::Ban, false, true),
            (V::Shared, M::Join, false, true),
            (V::Shared, M::Leave, true, true),
            (V::Shared, M::Leave, false, false),
            (V::Shared, M::Invite, false, false),
            (V::Invited, M::Invite, false, true),
            (V::Invited, M::Leave, true, false),
            (V::Invited, M::Join, false, true),
            (V::Joined, M::Invite, true, false),
            (V::Joined, M::Join, false, true),
            (V::Joined, M::Leave, true, false),
            (V::Joined, M::Ban, false, false),
        ];
        for (visibility, membership, later, allowed) in table {
            let view = View::steady(visibility, membership, later);
            assert_eq!(user_may_see(&view), allowed, "{view:?}");
        }
    }

    #[test]
    fn own_changes_are_seen_from_both_sides() {
        let mut join = View::steady(V::Joined, M::Leave, false);
        join.membership_after = M::Join;
        assert!(user_may_see(&join));
        let mut kick = View::steady(V::Joined, M::Join, false);
        kick.membership_after = M::Leave;
        assert!(user_may_see(&kick));
        let mut closing = View::steady(V::WorldReadable, M::Leave, false);
        closing.visibility_after = V::Joined;
        assert!(user_may_see(&closing));
    }

    #[test]
    fn a_server_sees_what_one_of_its_users_saw() {
        let absent = ServerPresence::default();
        let invited = ServerPresence { invited: true, ..absent };
        let joined = ServerPresence { joined: true, ..absent };
        assert!(server_may_see(&V::Shared, absent) && server_may_see(&V::WorldReadable, absent));
        assert!(!server_may_see(&V::Invited, absent) && server_may_see(&V::Invited, invited));
        assert!(!server_may_see(&V::Joined, invited) && server_may_see(&V::Joined, joined));
        assert_eq!(visibility_of(None), V::Shared);
    }
}
