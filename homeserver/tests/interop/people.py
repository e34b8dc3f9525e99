"""People with accounts, over the client API as it is on every server; and how two servers come to agree."""

import itertools
import json
import os
import secrets
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from servers import Server

PASSWORD = "correct horse battery staple"
# How long anything may take that should happen at once; the machine may be busy with other tests.
PATIENCE = int(os.environ.get("INTEROP_PATIENCE", "60"))
# One request; a join over federation asks the other server several times.
REQUEST_LIMIT = 60
BEGAN = time.monotonic()

_numbers = itertools.count()
_said = threading.Lock()


def step(words: str) -> None:
    """Says what has been shown, and after how many seconds."""
    with _said:
        print(f"   {time.monotonic() - BEGAN:5.1f} s  {words}", flush=True)


def until(what: str, found, patience: float = PATIENCE):
    """Calls `found` until it answers something true; returns that."""
    deadline = time.monotonic() + patience
    pause = 0.02
    while True:
        answer = found()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.3)


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, body: dict, what: str):
        super().__init__(f"{status} {body} to {what}")
        self.status, self.body, self.code = status, body, body.get("errcode", "")


def quoted(*parts: str) -> str:
    return "/".join(urllib.parse.quote(part, safe="") for part in parts)


class Person:
    """An account with one device."""

    def __init__(self, server: Server, name: str):
        self.server = server
        # Both letters and case-folding-proof: the same people exist in several stories.
        self.local = f"{name}-{secrets.token_hex(3)}"
        self.token = ""
        body = {"username": self.local, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        made = self.post("v3/register", body)
        self.id, self.token, self.device = made["user_id"], made["access_token"], made["device_id"]
        self.since = ""
        self.rooms: dict[str, list[dict]] = {}
        self.ephemeral: list[dict] = []
        self.to_device: list[dict] = []
        self.changed: set[str] = set()
        self.presence: list[dict] = []

    def ask(self, method: str, path: str, body=None, data: bytes | None = None, kind="application/json", **query):
        """Asks the client API; `path` comes after `/_matrix/client/`. Gives the JSON, or raises `Refused`."""
        answer = self.raw(method, f"/_matrix/client/{path}", body, data, kind, **query)
        return json.loads(answer[0])

    def raw(self, verb: str, path: str, body=None, data=None, kind="application/json", **query):
        """The bytes and the headers of an answer."""
        url = f"{self.server.url}{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query, doseq=True)
        if body is not None:
            data = json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, method=verb)
        request.add_header("content-type", kind)
        if self.token:
            request.add_header("authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_LIMIT) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            text = error.read()
            try:
                said = json.loads(text)
            except ValueError:
                said = {"error": text[:300].decode(errors="replace")}
            raise Refused(error.code, said, f"{verb} {url} of {getattr(self, 'id', self.local)}") from None

    def get(self, path: str, **query):
        return self.ask("GET", path, **query)

    def post(self, path: str, body: dict | None = None, **query):
        return self.ask("POST", path, body or {}, **query)

    def put(self, path: str, body: dict):
        return self.ask("PUT", path, body)

    def refused(self, code: str, status: int, what, *arguments, **more) -> None:
        """Calls `what`, which must be refused with the status; by our server with the code, too."""
        try:
            answer = what(*arguments, **more)
        except Refused as refused:
            assert refused.status == status, refused
            assert refused.code == code or self.server.kind == "synapse", refused
            return
        raise AssertionError(f"{what.__name__}{arguments} was not refused: {answer}")

    # Rooms.

    def create(self, version: str, preset="public_chat", state=(), **more) -> str:
        """Creates an encrypted room."""
        sealed = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
        body = {"room_version": version, "preset": preset, "initial_state": [sealed, *state], **more}
        return self.post("v3/createRoom", body)["room_id"]

    def join(self, room: str, *via: Server) -> str:
        names = [server.name for server in via]
        return self.ask("POST", f"v3/join/{quoted(room)}", {}, via=names, server_name=names)["room_id"]

    def knock(self, room: str, *via: Server) -> str:
        names = [server.name for server in via]
        body = {"reason": "let me in"}
        return self.ask("POST", f"v3/knock/{quoted(room)}", body, via=names, server_name=names)["room_id"]

    def leave(self, room: str) -> None:
        self.post(f"v3/rooms/{quoted(room)}/leave")

    def act(self, action: str, room: str, whom: "Person", reason: str | None = None) -> None:
        """`invite`, `kick`, `ban` or `unban`."""
        body = {"user_id": whom.id} | ({"reason": reason} if reason else {})
        self.post(f"v3/rooms/{quoted(room)}/{action}", body)

    def send(self, room: str, kind: str, content: dict) -> str:
        path = f"v3/rooms/{quoted(room)}/send/{quoted(kind, f't{next(_numbers)}')}"
        return self.put(path, content)["event_id"]

    def say(self, room: str, **more) -> str:
        """Sends what looks like an encrypted message, with `more` content; nobody is meant to read it."""
        content = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": secrets.token_urlsafe(60),
            "session_id": secrets.token_urlsafe(30),
            "sender_key": secrets.token_urlsafe(30),
            "device_id": self.device,
            **more,
        }
        return self.send(room, "m.room.encrypted", content)

    def redact(self, room: str, event: str, reason: str = "a slip") -> str:
        path = f"v3/rooms/{quoted(room)}/redact/{quoted(event, f't{next(_numbers)}')}"
        return self.put(path, {"reason": reason})["event_id"]

    def set(self, room: str, kind: str, content: dict, key: str = "") -> str:
        return self.put(f"v3/rooms/{quoted(room)}/state/{quoted(kind, key)}", content)["event_id"]

    def state(self, room: str) -> dict[tuple[str, str], dict]:
        events = self.get(f"v3/rooms/{quoted(room)}/state")
        return {(event["type"], event["state_key"]): event for event in events}

    def content(self, room: str, kind: str, key: str = "") -> dict | None:
        """The content of a state event; none when there is none or we may not see it."""
        try:
            return self.get(f"v3/rooms/{quoted(room)}/state/{quoted(kind, key)}")
        except Refused as refused:
            if refused.status in (403, 404):
                return None
            raise

    def membership(self, room: str, whom: "Person") -> str | None:
        return (self.content(room, "m.room.member", whom.id) or {}).get("membership")

    def event(self, room: str, event: str) -> dict | None:
        try:
            return self.get(f"v3/rooms/{quoted(room)}/event/{quoted(event)}")
        except Refused as refused:
            if refused.status in (403, 404):
                return None
            raise

    def hears(self, room: str, event: str) -> dict:
        """Waits for an event to reach the timeline of a sync."""

        def look():
            self.sync()
            return next((e for e in self.rooms.get(room, ()) if e["event_id"] == event), None)

        return until(f"{self.id} to hear {event}", look)

    def history(self, room: str) -> dict[str, dict]:
        """All events of a room that we can page back to, by id."""
        found, start = {}, None
        while True:
            query = {"dir": "b", "limit": 100} | ({"from": start} if start else {})
            page = self.get(f"v3/rooms/{quoted(room)}/messages", **query)
            found |= {event["event_id"]: event for event in page["chunk"]}
            start = page.get("end")
            if not start:
                return found

    # Syncs.

    def sync(self, timeout: int = 0) -> dict:
        """One sync; what it brings is kept."""
        query = {"timeout": timeout} | ({"since": self.since} if self.since else {})
        body = self.get("v3/sync", **query)
        self.since = body["next_batch"]
        for room, update in body.get("rooms", {}).get("join", {}).items():
            self.rooms.setdefault(room, []).extend(update.get("timeline", {}).get("events", []))
            for event in update.get("ephemeral", {}).get("events", []):
                self.ephemeral.append({**event, "room_id": room})
        self.to_device += body.get("to_device", {}).get("events", [])
        self.changed |= set(body.get("device_lists", {}).get("changed", []))
        self.presence += body.get("presence", {}).get("events", [])
        return body

    def invited(self, room: str) -> list[dict]:
        """Waits for an invitation; gives the state that came with it."""

        def look():
            body = self.get("v3/sync", timeout=0)
            return body.get("rooms", {}).get("invite", {}).get(room)

        return until(f"{self.id} to be invited", look)["invite_state"]["events"]


# What a server adds for its own clients.
OURS = ("unsigned", "user_id", "age", "replaces_state", "prev_content", "redacted_because")


def essence(event: dict) -> dict:
    return {key: value for key, value in event.items() if key not in OURS}


def differences(name: str, ours: dict, theirs: dict) -> list[str]:
    """What two servers say differently, for people to read."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(key), theirs.get(key)
        if one is None or other is None or essence(one) != essence(other):
            found.append(f"  {name} {key}:\n    {one and essence(one)}\n    {other and essence(other)}")
    return found


def agree(room: str, one: Person, other: Person, history: bool = True, patience: float = PATIENCE) -> int:
    """Waits until the servers of both agree about the state of the room, event by event, and about all that happened
    in it. Gives the number of events."""
    assert one.server is not other.server
    deadline = time.monotonic() + patience
    while True:
        different = differences("state", one.state(room), other.state(room))
        events = {}
        if not different and history:
            events, theirs = one.history(room), other.history(room)
            different = differences("event", events, theirs)
        if not different:
            return len(events)
        if time.monotonic() > deadline:
            said = "\n".join(different[:20])
            raise AssertionError(
                f"{one.server.kind} and {other.server.kind} disagree about {room} "
                f"({len(different)} differences, the first):\n{said}"
            )
        time.sleep(0.3)
