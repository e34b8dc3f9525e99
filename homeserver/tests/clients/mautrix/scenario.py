"""An application service on mautrix-python, with its own end-to-end encryption, beside waxwing-client.

The bridge never syncs: everything it knows, it was told in transactions: messages, memberships, the keys that devices
send it, whose devices changed, how many of its one-time keys are left.

    scenario.py register DIR   writes the registration that the server is to read, before it starts
    scenario.py run DIR        the scenario
"""

import asyncio
import io
import json
import logging
import os
import secrets
import socket
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BOT = "birds_bot"


def register(directory: Path) -> None:
    """Writes the registration and keeps what it says for the scenario."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = [{"exclusive": True, "regex": "@birds_.*:localhost"}]
    registration = {
        "id": "birds",
        "url": f"http://127.0.0.1:{port}",
        "as_token": secrets.token_hex(16),
        "hs_token": secrets.token_hex(16),
        "sender_localpart": BOT,
        "rate_limited": False,
        "namespaces": {"users": users},
        "receive_ephemeral": True,
        "org.matrix.msc3202": True,
        "io.element.msc4190": True,
    }
    (directory / "registrations").mkdir()
    # JSON is YAML.
    (directory / "registrations" / "birds.yaml").write_text(json.dumps({**registration}))


if sys.argv[1] == "register":
    register(Path(sys.argv[2]))
    sys.exit()

from mautrix.appservice import AppService
from mautrix.appservice.state_store.asyncpg import PgASStateStore
from mautrix.client import Client
from mautrix.crypto import OlmMachine, PgCryptoStore
from mautrix.errors import EncryptionError
from mautrix.types import EventType, Membership, MessageType, TextMessageEventContent, TrustState
from mautrix.util.async_db import Database
from waxwing_client import HOMESERVER, PASSWORD, PATIENCE, Person, restart_server, step, until


class Bridge:
    """The application service and the one device of its bot, with stores that outlive it."""

    def __init__(self, directory: Path):
        self.registration = json.loads((directory / "registrations" / "birds.yaml").read_text())
        self.directory = directory
        # Letters in the order in which they came, and what those say that could be read.
        self.letters: list[str] = []
        self.read: dict[str, tuple[str, str]] = {}
        self.failures: list[str] = []
        self.joined: set[str] = set()
        self.counts: list[int] = []
        self.typing: list[tuple[str, list[str]]] = []

    def _database(self, table) -> Database:
        # One file for both: the keys are looked up by who is in which room.
        return Database.create(f"sqlite:///{self.directory}/bridge.db", upgrade_table=table)

    async def start(self) -> None:
        self.state_db = self._database(PgASStateStore.upgrade_table)
        self.crypto_db = self._database(PgCryptoStore.upgrade_table)
        await self.state_db.start()
        await self.crypto_db.start()
        state = PgASStateStore(self.state_db)
        port = int(self.registration["url"].rsplit(":", 1)[1])
        self.service = AppService(
            server=HOMESERVER,
            domain="localhost",
            as_token=self.registration["as_token"],
            hs_token=self.registration["hs_token"],
            bot_localpart=BOT,
            id=self.registration["id"],
            state_store=state,
            ephemeral_events=True,
            encryption_events=True,
        )
        # One event after the other, as they stand in the transaction.
        self.service.synchronous_handlers = True
        self.service.matrix_event_handler(self._event)
        await self._start_encryption(state)
        await self.service.start("127.0.0.1", port)
        assert await self.service.ping_self("hello") >= 0

    async def _start_encryption(self, state: PgASStateStore) -> None:
        """As mautrix' own bridges do it: a device by MSC4190, and everything else by transactions."""
        store = PgCryptoStore("", "pickle key", self.crypto_db)
        await store.open()
        self.client = Client(base_url=HOMESERVER, mxid=self.service.bot_mxid, state_store=state)
        self.client.api.token = self.service.as_token
        self.crypto = OlmMachine(self.client, store, state)
        self.crypto.share_keys_min_trust = TrustState.UNVERIFIED
        self.service.otk_handler = self._counted
        self.service.device_list_handler = self.crypto.handle_as_device_lists
        self.service.to_device_handler = self.crypto.handle_as_to_device_event
        device_id = await store.get_device_id()
        await self.client.create_device_msc4190(device_id or "", "Bird bridge")
        await self.crypto.load()
        if not device_id:
            await store.put_device_id(self.client.device_id)
            await self.crypto.share_keys()
            await self.crypto.generate_recovery_key()

    async def stop(self) -> None:
        await self.service.stop()
        await self.client.api.session.close()
        await self.state_db.stop()
        await self.crypto_db.stop()

    async def _counted(self, counts) -> None:
        count = counts.get(self.client.mxid, {}).get(self.client.device_id)
        if count:
            self.counts.append(count.signed_curve25519)
        await self.crypto.handle_as_otk_counts(counts)

    async def _event(self, event) -> None:
        if event.type == EventType.TYPING:
            self.typing.append((event.room_id, event.content.user_ids))
        elif event.type == EventType.ROOM_MEMBER:
            await self._member(event)
        elif event.type == EventType.ROOM_ENCRYPTED and event.sender != self.client.mxid:
            self.letters.append(event.event_id)
            # The key may come in the same transaction or a later one: the next must not wait for it.
            asyncio.create_task(self._letter(event))

    async def _member(self, event) -> None:
        await self.crypto.handle_member_event(event)
        if event.state_key != self.client.mxid:
            return
        if event.content.membership == Membership.INVITE:
            await self.service.intent.join_room_by_id(event.room_id)
        elif event.content.membership == Membership.JOIN:
            self.joined.add(event.room_id)

    async def _letter(self, event) -> None:
        try:
            session = event.content.session_id
            if not await self.crypto.crypto_store.has_group_session(event.room_id, session):
                await self.crypto.wait_for_session(event.room_id, session, timeout=PATIENCE / 2)
            decrypted = await self.crypto.decrypt_megolm_event(event)
            self.read[event.event_id] = (event.sender, decrypted.content.body)
        except Exception as error:
            self.failures.append(f"{event.event_id} of {event.sender}: {error!r}")

    async def send(self, room: str, text: str) -> None:
        content = TextMessageEventContent(msgtype=MessageType.TEXT, body=text)
        try:
            sealed = await self.crypto.encrypt_megolm_event(room, EventType.ROOM_MESSAGE, content)
        except EncryptionError:
            members = await self.service.intent.get_joined_members(room)
            await self.crypto.share_group_session(room, list(members))
            sealed = await self.crypto.encrypt_megolm_event(room, EventType.ROOM_MESSAGE, content)
        await self.client.send_message_event(room, EventType.ROOM_ENCRYPTED, sealed)

    async def hears(self, sender: str, text: str) -> None:
        def look():
            assert not self.failures, self.failures
            return (sender, text) in self.read.values()

        await until(f"the bridge to read {text!r}", look)


async def talk(bridge: Bridge, person: Person) -> str:
    room = await person.run("create", "Hedge", "--invite", bridge.client.mxid)
    await until("the bridge to join", lambda: room in bridge.joined)
    step("invited and joined by transactions alone")
    await person.run("send", room, "is anybody there?")
    await bridge.hears(person.user_id, "is anybody there?")
    await bridge.send(room, "a whole network")
    message = await person.hears(room, "a whole network")
    assert message["sender"] == bridge.client.mxid
    step("messages both ways, encrypted")
    assert bridge.counts and min(bridge.counts) < max(bridge.counts), bridge.counts
    step("told that a one-time key was claimed")
    return room


async def ghost(bridge: Bridge, room: str) -> None:
    """Another user of the bridge, made without a device, comes into the room when it is invited."""
    intent = bridge.service.intent.user("@birds_wren:localhost")
    await intent.ensure_registered()
    await intent.set_displayname("Wren")
    await bridge.service.intent.invite_user(room, intent.mxid)
    await intent.join_room_by_id(room)
    assert intent.mxid in await bridge.service.intent.get_joined_members(room)


async def main(directory: Path) -> None:
    bridge, person = Bridge(directory), Person(directory, "alice")
    await bridge.start()
    await person.register()
    room = await talk(bridge, person)

    await restart_server("KILL")
    await person.run("send", room, "after the crash")
    await bridge.hears(person.user_id, "after the crash")
    await bridge.send(room, "nothing was lost")
    await person.hears(room, "nothing was lost")
    step("the server crashed and came back")

    await bridge.stop()
    for text in ("one", "two", "three"):
        await person.run("send", room, f"while you were away: {text}")
    await restart_server("TERM")
    bridge = Bridge(directory)
    await bridge.start()
    for text in ("one", "two", "three"):
        await bridge.hears(person.user_id, f"while you were away: {text}")
    heard = [bridge.read[letter][1] for letter in bridge.letters]
    assert heard == [f"while you were away: {text}" for text in ("one", "two", "three")], heard
    step("what was said while the bridge was away came when it was back, once and in order")

    second = Person(directory, "second")
    await second.run("login", HOMESERVER, person.user_id, stdin=PASSWORD)
    devices = bridge.crypto.crypto_store.get_devices

    async def known():
        return len(await devices(person.user_id) or {}) == 2

    await until("the bridge to know the new device", known)
    await bridge.send(room, "to both of your devices")
    await person.hears(room, "to both of your devices")
    said = await second.run("read", room, "--limit", "1", "--json")
    assert json.loads(said.splitlines()[-1])["text"] == "to both of your devices", said
    step("told of a new device, which can read what comes after")

    await ghost(bridge, room)
    await person.run("send", room, "good night")
    await bridge.hears(person.user_id, "good night")
    step("a user of the bridge without a device came into the room")
    assert not bridge.failures, bridge.failures
    await bridge.stop()


# Said only when something fails.
log = io.StringIO()
logging.basicConfig(stream=log, level=logging.DEBUG)
try:
    asyncio.run(asyncio.wait_for(main(Path(sys.argv[2])), PATIENCE * 5))
except BaseException:
    print(log.getvalue()[-8000:], file=sys.stderr)
    traceback.print_exc()
    # The threads of open databases would wait for ever.
    sys.stderr.flush()
    os._exit(1)
