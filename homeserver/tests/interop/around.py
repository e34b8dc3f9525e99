"""What two servers tell each other beside events: receipts, typing, presence, devices, media, directories."""

import base64
import json
import secrets
import struct
import zlib

from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa
from people import PASSWORD, Person, quoted, until
from rooms import Story, becomes


def ephemeral(story: Story) -> None:
    """Typing, receipts and presence reach the other side."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    room = alice.create(story.version)
    bob.join(room, story.home)
    becomes(alice, room, bob, "join")
    for one, other in ((alice, bob), (bob, alice)):
        said = one.say(room)
        other.hears(room, said)

        def heard(kind: str, found) -> None:
            def look():
                one.sync()
                return any(found(e["content"]) for e in one.ephemeral if e["type"] == kind and e["room_id"] == room)

            until(f"{kind} of {other.id}", look)

        typing = f"v3/rooms/{quoted(room)}/typing/{quoted(other.id)}"
        one.sync()
        other.put(typing, {"typing": True, "timeout": 20_000})
        heard("m.typing", lambda content: other.id in content["user_ids"])
        one.ephemeral.clear()
        other.put(typing, {"typing": False})
        heard("m.typing", lambda content: other.id not in content["user_ids"])
        other.post(f"v3/rooms/{quoted(room)}/receipt/m.read/{quoted(said)}")
        heard("m.receipt", lambda content: other.id in content.get(said, {}).get("m.read", {}))
        thread = {"thread_id": said}
        in_thread = one.say(room, **{"m.relates_to": {"rel_type": "m.thread", "event_id": said}})
        other.hears(room, in_thread)
        other.post(f"v3/rooms/{quoted(room)}/receipt/m.read/{quoted(in_thread)}", thread)
        heard(
            "m.receipt",
            lambda content: content.get(in_thread, {}).get("m.read", {}).get(other.id, {}).get("thread_id") == said,
        )
        # What is private stays at home.
        other.post(f"v3/rooms/{quoted(room)}/receipt/m.read.private/{quoted(in_thread)}")
        other.put(f"v3/presence/{quoted(other.id)}/status", {"presence": "unavailable", "status_msg": "at lunch"})

        def present():
            one.sync()
            return any(
                e["sender"] == other.id and e["content"].get("status_msg") == "at lunch" for e in one.presence
            )

        until(f"the presence of {other.id}", present)
        assert not any("m.read.private" in str(e) for e in one.ephemeral), one.ephemeral
    story.agreed(room, alice, bob)


def new_keys(user: str, device: str) -> tuple[dict, dict]:
    """Keys of a device, and two one-time keys, with its signature."""
    key = ECC.generate(curve="Ed25519")
    unpadded = lambda data: base64.b64encode(data).rstrip(b"=").decode()
    public = lambda: unpadded(secrets.token_bytes(32))

    def signed(value: dict) -> dict:
        text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        signature = unpadded(eddsa.new(key, "rfc8032").sign(text))
        return {**value, "signatures": {user: {f"ed25519:{device}": signature}}}

    device_keys = {
        "user_id": user,
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            f"curve25519:{device}": public(),
            f"ed25519:{device}": unpadded(key.public_key().export_key(format="raw")),
        },
    }
    return signed(device_keys), {f"signed_curve25519:{n}": signed({"key": public()}) for n in ("AAAA", "AAAB")}


def devices_of(one: Person, other: Person) -> list[str]:
    """The devices of `other` with keys, as `one` sees them."""
    found = one.post("v3/keys/query", {"device_keys": {other.id: []}})["device_keys"]
    return list(found.get(other.id, {}))


def devices(story: Story) -> None:
    """Keys are asked for and claimed, messages between devices arrive once and in order, changes of devices too."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    room = alice.create(story.version)
    bob.join(room, story.home)
    becomes(alice, room, bob, "join")
    for one, other in ((alice, bob), (bob, alice)):
        one.sync()
        # As clients do in an encrypted room; who never asked need not be told of changes.
        one.post("v3/keys/query", {"device_keys": {other.id: []}})
        one.changed.clear()
        keys, one_time = new_keys(other.id, other.device)
        other.post("v3/keys/upload", {"device_keys": keys, "one_time_keys": one_time})

        def noticed():
            one.sync()
            return other.id in one.changed

        until(f"the change of {other.id}'s devices", noticed)
        known = one.post("v3/keys/query", {"device_keys": {other.id: []}})
        assert known["device_keys"][other.id][other.device]["keys"] == keys["keys"], known
        claimed = [
            one.post("v3/keys/claim", {"one_time_keys": {other.id: {other.device: "signed_curve25519"}}})
            for _ in range(3)
        ]
        given = [c["one_time_keys"].get(other.id, {}).get(other.device, {}) for c in claimed]
        assert sorted(str(g) for g in given[:2]) == sorted(str({k: v}) for k, v in one_time.items()), given
        assert not given[2], given

        for n in range(30):
            content = {other.id: {other.device if n % 2 else "*": {"n": n}}}
            one.put(f"v3/sendToDevice/{quoted('org.example.note', secrets.token_hex(8))}", {"messages": content})

        def all_there():
            other.sync()
            return len([m for m in other.to_device if m["type"] == "org.example.note"]) >= 30

        until("the messages between devices", all_there)
        notes = [m for m in other.to_device if m["type"] == "org.example.note"]
        assert [m["content"]["n"] for m in notes] == list(range(30)), notes
        assert all(m["sender"] == one.id for m in notes)
        # A second device, renamed, and gone again.
        one.changed.clear()
        identifier = {"type": "m.id.user", "user": other.local}
        login = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD}
        second = other.post("v3/login", login)
        more, _ = new_keys(other.id, second["device_id"])
        first, other.token = other.token, second["access_token"]
        other.post("v3/keys/upload", {"device_keys": more})
        until("the second device", noticed)
        until("the keys of the second device", lambda: second["device_id"] in devices_of(one, other))
        one.changed.clear()
        other.post("v3/logout")
        other.token = first
        until("the end of the second device", noticed)
        until("the second device to be forgotten", lambda: devices_of(one, other) == [other.device])
    story.agreed(room, alice, bob)


def picture(width: int = 64, height: int = 48) -> bytes:
    """A PNG, made by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = lambda y: b"".join(bytes((x * 4 % 256, y * 5 % 256, 128)) for x in range(width))
    rows = b"".join(b"\0" + pixels(y) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def media(story: Story) -> None:
    """Files and thumbnails of the other server."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    for one, other in ((alice, bob), (bob, alice)):
        for name, kind, data in (
            ("a bird ✓.png", "image/png", picture()),
            ("sealed.bin", "application/octet-stream", secrets.token_bytes(3_000_000)),
            ("nothing.bin", "application/octet-stream", b"x"),
        ):
            uploaded, _ = one.raw("POST", "/_matrix/media/v3/upload", data=data, kind=kind, filename=name)
            server, file = json.loads(uploaded)["content_uri"].removeprefix("mxc://").split("/")
            assert server == one.server.name
            got, headers = other.raw("GET", f"/_matrix/client/v1/media/download/{quoted(server, file)}")
            assert got == data and headers["content-type"] == kind, headers.items()
        uploaded, _ = one.raw("POST", "/_matrix/media/v3/upload", data=picture(800, 600), kind="image/png")
        server, file = json.loads(uploaded)["content_uri"].removeprefix("mxc://").split("/")
        small, headers = other.raw(
            "GET", f"/_matrix/client/v1/media/thumbnail/{quoted(server, file)}", width=96, height=96, method="crop"
        )
        assert headers["content-type"].startswith("image/") and small, headers.items()
        missing = f"/_matrix/client/v1/media/download/{quoted(server, 'notthere')}"
        other.refused("M_NOT_FOUND", 404, other.raw, "GET", missing)


def directories(story: Story) -> None:
    """Aliases, profiles, the room list and spaces of the other server."""
    alice, bob = story.person(story.home, "alice"), story.person(story.away, "bob")
    alice.put(f"v3/profile/{quoted(alice.id)}/displayname", {"displayname": "Alice Übergröße 🐦"})
    profile = bob.get(f"v3/profile/{quoted(alice.id)}")
    assert profile["displayname"] == "Alice Übergröße 🐦", profile
    nobody = f"@nobody-at-all:{story.home.name}"
    bob.refused("M_NOT_FOUND", 404, bob.get, f"v3/profile/{quoted(nobody)}")

    alias = f"aviary-{secrets.token_hex(3)}"
    space = alice.create(
        story.version, creation_content={"type": "m.space"}, name=f"Space {alias}", visibility="public"
    )
    room = alice.create(
        story.version, room_alias_name=alias, visibility="public", name=f"Aviary {alias}", topic="All birds"
    )
    secret = alice.create(story.version, "private_chat", name="Nest")
    full = f"#{alias}:{story.home.name}"
    for child in (room, secret):
        alice.set(space, "m.space.child", {"via": [story.home.name]}, child)
    found = bob.get(f"v3/directory/room/{quoted(full)}")
    assert found["room_id"] == room and story.home.name in found["servers"], found
    bob.refused("M_NOT_FOUND", 404, bob.get, f"v3/directory/room/{quoted(f'#nothing-{alias}:{story.home.name}')}")
    listed = bob.ask("POST", "v3/publicRooms", {"filter": {"generic_search_term": alias}}, server=story.home.name)
    names = {entry["room_id"]: entry.get("name") for entry in listed["chunk"]}
    assert names == {room: f"Aviary {alias}", space: f"Space {alias}"}, listed
    page = bob.ask("POST", "v3/publicRooms", {"limit": 1}, server=story.home.name)
    assert len(page["chunk"]) == 1 and page.get("next_batch"), page
    summary = bob.get(f"v1/room_summary/{quoted(room)}", via=[story.home.name])
    assert summary["name"] == f"Aviary {alias}" and summary["room_version"] == story.version, summary

    assert bob.join(full) == room
    bob.join(space, story.home)
    becomes(alice, room, bob, "join")
    becomes(alice, space, bob, "join")
    tree = bob.get(f"v1/rooms/{quoted(space)}/hierarchy")
    assert {entry["room_id"] for entry in tree["rooms"]} == {space, room}, tree
    children = tree["rooms"][0]["children_state"]
    assert {child["state_key"] for child in children} == {room, secret}, children
    # The name that a member has in the room follows the profile.
    alice.put(f"v3/profile/{quoted(alice.id)}/displayname", {"displayname": "Alice again"})
    until(
        "the new name",
        lambda: bob.content(room, "m.room.member", alice.id).get("displayname") == "Alice again",
    )
    story.agreed(room, alice, bob)
    story.agreed(space, alice, bob)


STORIES = (ephemeral, devices, media, directories)
