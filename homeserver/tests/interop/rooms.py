"""What happens between the members of a room on two servers, from either side, in each room version."""

from people import Person, agree, until
from servers import Server


class Story:
    """A room version, the server at which the rooms are made, and the other one."""

    def __init__(self, version: str, home: Server, away: Server):
        self.version, self.home, self.away = version, home, away
        self.name = f"v{version} from {home.kind}"
        self.rooms: list[tuple[str, Person, Person, bool]] = []

    def person(self, server: Server, name: str) -> Person:
        return Person(server, name)

    def agreed(self, room: str, one: Person, other: Person, history: bool = True) -> None:
        """The servers agree now, about the state at least, and must still at the end of everything."""
        agree(room, one, other, history)
        self.rooms.append((room, one, other, history))


def becomes(who: Person, room: str, whom: Person, membership: str | None) -> None:
    until(
        f"{whom.id} to be {membership} for {who.id} in {room}", lambda: who.membership(room, whom) == membership
    )


def everyday(story: Story) -> None:
    """Invitations, messages, reactions, redactions, state and power both ways."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    room = alice.create(story.version, "private_chat", name="Everyday", topic="Feathers")
    alice.act("invite", room, bob, reason="come in")
    seen = {event["type"]: event for event in bob.invited(room)}
    assert seen["m.room.name"]["content"]["name"] == "Everyday", seen
    assert seen["m.room.encryption"]["content"]["algorithm"] == "m.megolm.v1.aes-sha2", seen
    assert seen["m.room.create"]["content"]["room_version"] == story.version, seen
    assert bob.join(room) == room
    becomes(alice, room, bob, "join")

    for speaker, listener in ((alice, bob), (bob, alice)) * 2:
        said = speaker.say(room)
        heard = listener.hears(room, said)
        assert heard["sender"] == speaker.id and heard["type"] == "m.room.encrypted"
        reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": said, "key": "🐦"}}
        listener_says = listener.send(room, "m.reaction", reaction)
        speaker.hears(room, listener_says)
        slip = speaker.say(room)
        listener.hears(room, slip)
        redaction = speaker.redact(room, slip)
        listener.hears(room, redaction)
        until("the redaction", lambda: listener.event(room, slip)["content"] == {})

    bob.refused("M_FORBIDDEN", 403, bob.set, room, "m.room.topic", {"topic": "mine"})
    levels = alice.content(room, "m.room.power_levels")
    levels["users"] = levels.get("users", {}) | {bob.id: 100}
    alice.set(room, "m.room.power_levels", levels)
    until("bob's power", lambda: bob.content(room, "m.room.power_levels") == levels)
    bob.set(room, "m.room.topic", {"topic": "bob's"})
    bob.set(room, "m.room.name", {"name": "Renamed"})
    bob.set(room, "org.example.note", {"n": 1, "deep": {"list": [1, 2, None, True, "é\u2028\U0001f426"]}}, bob.id)
    until("bob's topic", lambda: alice.content(room, "m.room.topic") == {"topic": "bob's"})
    # Both at once: whoever wins, wins at both.
    alice.set(room, "m.room.topic", {"topic": "alice's"})
    bob.set(room, "m.room.topic", {"topic": "bob's again"})
    # A moderator of the other side redacts.
    said = alice.say(room)
    bob.hears(room, said)
    bob.redact(room, said, "moderated")
    until("the moderation", lambda: alice.event(room, said)["content"] == {})
    story.agreed(room, alice, bob)


def leaving(story: Story) -> None:
    """Leaves, kicks, bans, unbans, returns, and invitations that come to nothing, from both sides."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    carol = story.person(story.away, "carol")
    room = alice.create(story.version)
    for person in (bob, carol):
        person.join(room, story.home)
        becomes(alice, room, person, "join")
    levels = alice.content(room, "m.room.power_levels")
    alice.set(room, "m.room.power_levels", levels | {"users": levels.get("users", {}) | {carol.id: 60}})
    until("carol's power", lambda: (carol.content(room, "m.room.power_levels") or {}).get("users", {}).get(carol.id))

    bob.leave(room)
    becomes(alice, room, bob, "leave")
    bob.join(room, story.home)
    becomes(alice, room, bob, "join")
    dave = story.person(story.home, "dave")
    dave.join(room)
    becomes(carol, room, dave, "join")
    # Each side kicks, bans and unbans somebody of the other, and of its own.
    for by, whom, sees in ((alice, bob, carol), (carol, dave, alice), (carol, bob, alice)):
        by.act("kick", room, whom, "too loud")
        becomes(sees, room, whom, "leave")
        until(f"{whom.id} to know", lambda whom=whom: room not in whom.get("v3/joined_rooms")["joined_rooms"])
        whom.join(room, story.home, story.away)
        becomes(sees, room, whom, "join")
        becomes(by, room, whom, "join")
        by.act("ban", room, whom, "much too loud")
        becomes(sees, room, whom, "ban")
        whom.refused("M_FORBIDDEN", 403, whom.join, room, story.home, story.away)
        by.act("unban", room, whom)
        becomes(sees, room, whom, "leave")
        whom.join(room, story.home, story.away)
        becomes(sees, room, whom, "join")
        becomes(by, room, whom, "join")
    story.agreed(room, alice, carol)

    # The last of a server leaves; the room goes on without it; somebody comes back.
    for person in (bob, carol):
        person.leave(room)
        becomes(alice, room, person, "leave")
    meanwhile = alice.say(room)
    carol.join(room, story.home)
    becomes(alice, room, carol, "join")
    until("what was said meanwhile", lambda: meanwhile in carol.history(room))
    story.agreed(room, alice, carol)

    private = alice.create(story.version, "private_chat")
    erin = story.person(story.away, "erin")
    alice.act("invite", private, erin)
    erin.invited(private)
    erin.leave(private)
    becomes(alice, private, erin, "leave")
    alice.act("invite", private, erin)
    erin.invited(private)
    alice.act("kick", private, erin, "a mistake")
    invitations = lambda: erin.get("v3/sync", timeout=0).get("rooms", {}).get("invite", {})
    until("the invitation to be taken back", lambda: private not in invitations())
    erin.refused("M_FORBIDDEN", 403, erin.join, private, story.home)
    alice.act("invite", private, erin)
    erin.invited(private)
    erin.join(private)
    becomes(alice, private, erin, "join")
    erin.refused("M_FORBIDDEN", 403, erin.act, "ban", private, alice)
    story.agreed(private, alice, erin)


def knocking(story: Story) -> None:
    """Knocks that are accepted, refused and taken back."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    join_rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = alice.create(story.version, "private_chat", [join_rules], name="Closed")
    bob.refused("M_FORBIDDEN", 403, bob.join, room, story.home)
    bob.knock(room, story.home)
    becomes(alice, room, bob, "knock")
    knocked = until("the knock", lambda: bob.get("v3/sync", timeout=0).get("rooms", {}).get("knock", {}).get(room))
    names = [e["content"] for e in knocked["knock_state"]["events"] if e["type"] == "m.room.name"]
    assert names == [{"name": "Closed"}], knocked
    # Synapse does neither tell others that a knock was taken back nor that it was refused.
    if story.away.kind != "synapse":
        bob.leave(room)
        becomes(alice, room, bob, "leave")
        bob.knock(room, story.home)
        becomes(alice, room, bob, "knock")
    alice.act("kick", room, bob, "not today")
    becomes(alice, room, bob, "leave")
    bob.knock(room, story.home)
    becomes(alice, room, bob, "knock")
    alice.act("invite", room, bob)
    bob.invited(room)
    bob.join(room)
    becomes(alice, room, bob, "join")
    # Now both servers are in the room: a knock at the one that did not make it.
    carol = story.person(story.away, "carol")
    carol.knock(room, story.home, story.away)
    becomes(alice, room, carol, "knock")
    alice.act("invite", room, carol)
    # The invitation comes twice: to her server, and as an event of the room.
    carol.invited(room)
    becomes(bob, room, carol, "invite")
    carol.join(room)
    story.agreed(room, alice, carol)


def restricted(story: Story) -> None:
    """Rooms that the members of another room may join, with the other side's signature."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    carol, dave = story.person(story.away, "carol"), story.person(story.away, "dave")
    club = alice.create(story.version)
    allow = [{"type": "m.room_membership", "room_id": club}]
    for rule in ("restricted", "knock_restricted"):
        content = {"join_rule": rule, "allow": allow}
        room = alice.create(
            story.version, "private_chat", [{"type": "m.room.join_rules", "state_key": "", "content": content}]
        )
        if bob.membership(club, bob) != "join":
            bob.refused("M_FORBIDDEN", 403, bob.join, room, story.home)
            bob.join(club, story.home)
            becomes(alice, club, bob, "join")
        bob.join(room, story.home)
        becomes(alice, room, bob, "join")
        member = alice.content(room, "m.room.member", bob.id)
        assert member["join_authorised_via_users_server"] == alice.id, member
        # The away server is in the room now, but nobody there may invite: it must ask again.
        levels = alice.content(room, "m.room.power_levels")
        levels = levels | {"invite": 50}
        alice.set(room, "m.room.power_levels", levels)
        until("the power levels", lambda: bob.content(room, "m.room.power_levels") == levels)
        if carol.membership(club, carol) != "join":
            carol.join(club, story.home)
            becomes(alice, club, carol, "join")
        carol.join(room, story.home, story.away)
        becomes(alice, room, carol, "join")
        # With power of its own it lets its people in by itself, and the other side accepts that.
        levels = levels | {"users": levels.get("users", {}) | {bob.id: 50}}
        alice.set(room, "m.room.power_levels", levels)
        until("bob's power", lambda: bob.content(room, "m.room.power_levels") == levels)
        dave.refused("M_FORBIDDEN", 403, dave.join, room, story.away)
        erin = story.person(story.away, "erin")
        erin.join(club, story.home)
        erin.join(room, story.away)
        becomes(alice, room, erin, "join")
        story.agreed(room, alice, bob)
        bob.leave(room)
    story.agreed(club, alice, bob)


def history(story: Story) -> None:
    """Somebody comes late, to a room that has a past, and reads all of it."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    room = alice.create(story.version)
    said = [alice.say(room) for _ in range(15)]
    for n in range(30):
        alice.set(room, "org.example.note", {"n": n}, f"note {n % 7}")
    alice.redact(room, said[3])
    said += [alice.say(room) for _ in range(25)]
    bob.join(room, story.home)
    found = until("the whole past", lambda: (lambda h: h if set(said) <= set(h) else None)(bob.history(room)))
    assert found[said[3]]["content"] == {}, found[said[3]]
    # By time, too: the first thing that was said is not here before the other side is asked.
    at = found[said[0]]["origin_server_ts"]
    near = bob.get(f"v1/rooms/{room}/timestamp_to_event", ts=at, dir="f")
    assert near["origin_server_ts"] >= at, near
    around = bob.get(f"v3/rooms/{room}/context/{said[10]}", limit=6)
    assert len(around["events_before"]) == 3 and len(around["events_after"]) == 3, around
    # Synapse leaves out the event just before, where history was fetched backwards.
    before = [event["event_id"] for event in around["events_before"]]
    assert story.away.kind == "synapse" or before == said[7:10][::-1], (before, said[7:11])
    story.agreed(room, alice, bob)


def upgrade(story: Story) -> None:
    """The room moves on to the newest version, and everybody with it."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    room = alice.create(story.version, name="Old", power_level_content_override={"users_default": 0})
    bob.join(room, story.home)
    becomes(alice, room, bob, "join")
    new = alice.post(f"v3/rooms/{room}/upgrade", {"new_version": "12"})["replacement_room"]
    tombstone = until("the tombstone", lambda: bob.content(room, "m.room.tombstone"))
    assert tombstone["replacement_room"] == new, tombstone
    bob.join(new, story.home)
    becomes(alice, new, bob, "join")
    created = bob.content(new, "m.room.create")
    assert created["predecessor"]["room_id"] == room and created["room_version"] == "12", created
    assert bob.content(new, "m.room.name") == {"name": "Old"}
    bob.refused("M_FORBIDDEN", 403, bob.say, room)
    for one, other in ((alice, bob), (bob, alice)):
        other.hears(new, one.say(new))
    story.agreed(room, alice, bob)
    story.agreed(new, alice, bob)


def denied(story: Story) -> None:
    """A server is shut out by an access control list, and let in again."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    room, beside = alice.create(story.version), alice.create(story.version)
    for joined in (room, beside):
        bob.join(joined, story.home)
        becomes(alice, joined, bob, "join")
    # Ports do not count in these lists, and one of the two names is an address.
    shut = {"allow": ["*"], "allow_ip_literals": story.away.host != "127.0.0.1"}
    shut["deny"] = [story.away.host] if story.away.host != "127.0.0.1" else []
    bob.hears(room, alice.set(room, "m.room.server_acl", shut))
    unheard = [bob.say(room) for _ in range(3)]
    alice.hears(beside, bob.say(beside))
    still = alice.say(room)
    bob.hears(room, still)
    assert not any(alice.event(room, event) for event in unheard), unheard
    bob.hears(room, alice.set(room, "m.room.server_acl", {"allow": ["*"], "deny": [], "allow_ip_literals": True}))
    alice.hears(room, bob.say(room))
    story.agreed(room, alice, bob)


STORIES = (everyday, leaving, knocking, restricted, history, upgrade, denied)
