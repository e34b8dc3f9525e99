"""The servers are parted, or one of them is away, and come together again: whatever each did meanwhile, both end with
the same."""

import signal

from people import Person, Refused, step, until
from rooms import Story, becomes


def levels(person: Person, room: str, **users: int) -> dict:
    """The power levels of the room with other ones for these people (named by their local part's first word)."""
    content = person.content(room, "m.room.power_levels")
    return content | {"users": content.get("users", {}) | users}


class Parted:
    """A room with moderators on both sides, in one version."""

    def __init__(self, story: Story):
        self.story = story
        home, away = story.home, story.away
        self.alice, self.anna = story.person(home, "alice"), story.person(home, "anna")
        self.bob, self.beth = story.person(away, "bob"), story.person(away, "beth")
        self.everybody = (self.alice, self.anna, self.bob, self.beth)
        self.room = self.alice.create(story.version, name="Together")
        for person in (self.anna, self.bob, self.beth):
            person.join(self.room, home, away)
            becomes(self.alice, self.room, person, "join")
            becomes(self.bob if person is not self.anna else self.alice, self.room, person, "join")
        content = levels(self.alice, self.room, **{self.bob.id: 100, self.anna.id: 50, self.beth.id: 50})
        self.alice.set(self.room, "m.room.power_levels", content)
        until("the power levels", lambda: self.bob.content(self.room, "m.room.power_levels") == content)
        until("all to be there", lambda: all(self.bob.membership(self.room, p) == "join" for p in self.everybody))

    def quarrel(self) -> None:
        """Each side does what the other contradicts."""
        alice, anna, bob, beth, room = self.alice, self.anna, self.bob, self.beth, self.room
        try_all(
            (alice.say, room),
            (bob.say, room),
            # Of two topics, one.
            (anna.set, room, "m.room.topic", {"topic": "anna's"}),
            (beth.set, room, "m.room.topic", {"topic": "beth's"}),
            # A moderator is banned while she bans.
            (alice.act, "ban", room, beth),
            (beth.act, "kick", room, anna),
            # Power is taken while it is used.
            (alice.set, room, "m.room.power_levels", levels(alice, room, **{bob.id: 0})),
            (bob.set, room, "m.room.power_levels", levels(bob, room, **{anna.id: 0, beth.id: 75})),
            (bob.set, room, "m.room.name", {"name": "bob's"}),
            (alice.set, room, "m.room.name", {"name": "alice's"}),
            (bob.set, room, "m.room.join_rules", {"join_rule": "invite"}),
            (alice.set, room, "m.room.history_visibility", {"history_visibility": "joined"}),
            (beth.set, room, "org.example.note", {"by": "beth"}, "a"),
            (anna.set, room, "org.example.note", {"by": "anna"}, "b"),
            (anna.leave, room),
            *((person.say, room) for person in (alice, bob) for _ in range(3)),
        )

    def reconcile(self) -> None:
        """Each side says something, so that the other asks for what it missed."""
        self.alice.say(self.room)
        self.bob.say(self.room)
        self.story.agreed(self.room, self.alice, self.bob, history=False)


def try_all(*acts) -> None:
    """What one's own side forbids by then is left out."""
    for what, *arguments in acts:
        try:
            what(*arguments)
        except Refused as refused:
            assert refused.status == 403, refused


def partition(stories: list[Story]) -> None:
    """The line between the servers is cut in the middle of things, twice."""
    rooms = [Parted(story) for story in stories]
    lines = {server.line for story in stories for server in (story.home, story.away)}
    for _ in range(2):
        for line in lines:
            line.cut()
        for room in rooms:
            room.quarrel()
        for line in lines:
            line.mend()
        for room in rooms:
            room.reconcile()


def outage(stories: list[Story]) -> None:
    """Each server is away for a while, once in good order and once by a crash, and misses nothing."""
    rooms = [Parted(story) for story in stories]
    for server in (stories[0].home, stories[0].away):
        for by in (signal.SIGTERM, signal.SIGKILL):
            server.stop(by)
            missed = []
            for room in rooms:
                stays = room.alice if room.alice.server is not server else room.bob
                away = room.bob if stays is room.alice else room.alice
                said = [stays.say(room.room) for _ in range(3)]
                stays.set(room.room, "m.room.topic", {"topic": f"while {server.kind} was away {by}"})
                note = {"n": len(said)}
                path = f"v3/sendToDevice/org.example.away/{said[0]}"
                stays.put(path, {"messages": {away.id: {"*": note}}})
                missed.append((room, stays, away, said, note))
            server.start()
            server.ready()
            for room, stays, away, said, note in missed:
                for event in said:
                    until("what was said", lambda e=event: away.event(room.room, e))

                def told():
                    away.sync()
                    return [m["content"] for m in away.to_device if m["type"] == "org.example.away"]

                until("the message to the device", told)
                assert told() == [note], told()
                away.to_device.clear()
                for one, other in ((stays, away), (away, stays)):
                    said = one.say(room.room)
                    until("the next word", lambda: other.event(room.room, said))
            step(f"{server.kind} was away ({signal.Signals(by).name}) and missed nothing")
    for room in rooms:
        room.story.agreed(room.room, room.alice, room.bob, history=False)


STORIES = (partition, outage)
