"""Encrypted conversation between matrix-nio on Synapse and waxwing-client on Waxwing."""

import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path

from people import step
from servers import Pair

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
# The whole story.
LIMIT = 180


async def trusting(bot, person) -> None:
    """nio sends to devices that it trusts only."""
    device = await bot.device(person.user_id, person.device_id)
    assert device.ed25519 == await person.fingerprint()
    bot.client.verify_device(device)


async def talk(pair: Pair, directory: Path) -> None:
    from bot import PICTURE, Bot, good
    from waxwing_client import Person, until

    alice, bot = Person(directory, "alice"), Bot(directory, "bot", pair.synapse.url)
    await alice.register()
    await bot.register("bot")

    room = await alice.run("create", "Aviary", "--invite", bot.client.user_id)
    await until("the invitation", lambda: bot.alive() and room in bot.client.invited_rooms)
    good(await bot.client.join(room))
    await until("the room", lambda: bot.alive() and room in bot.client.rooms)
    await trusting(bot, alice)
    await alice.run("send", room, "hello from waxwing")
    await bot.hears("hello from waxwing")
    await bot.send(room, "hello from synapse")
    assert (await alice.hears(room, "hello from synapse"))["sender"] == bot.client.user_id
    step("letters both ways, in a room of Waxwing's")

    (directory / "feathers.bin").write_bytes(PICTURE)
    await alice.run("send-file", room, str(directory / "feathers.bin"))
    assert await bot.receives("feathers.bin") == PICTURE
    await bot.send_picture(room, "berries.png")
    assert await alice.receives(room, "berries.png", directory / "saved") == PICTURE
    step("attachments both ways")

    sealed = [{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]
    made = good(await bot.client.room_create(name="Nest", invite=[alice.user_id], initial_state=sealed))
    await until("the new room", lambda: bot.alive() and made.room_id in bot.client.rooms)
    await alice.run("join", made.room_id)
    joined = lambda: alice.user_id in bot.client.rooms[made.room_id].users
    await until("alice in the room", lambda: bot.alive() and joined())
    await bot.send(made.room_id, "a nest of synapse's")
    await alice.hears(made.room_id, "a nest of synapse's")
    await alice.run("send", made.room_id, "found it")
    await bot.hears("found it")
    step("letters both ways, in a room of Synapse's")

    for server in pair.both:
        server.line.cut()
    for n in range(3):
        await alice.run("send", room, f"apart {n}")
        await bot.send(room, f"apart too {n}")
    for server in pair.both:
        server.line.mend()
    # A word in another room is enough for each to ask what it missed in this one.
    await alice.run("send", made.room_id, "together")
    await bot.send(made.room_id, "together too")
    for n in range(3):
        await bot.hears(f"apart {n}")
        await alice.hears(room, f"apart too {n}")
    step("letters that were written while the servers were apart")

    second = Bot(directory, "second", pair.synapse.url)
    await second.login(bot.client.user_id)
    await trusting(second, alice)
    third = Person(directory, "third")
    await third.login(alice)
    for one in (bot, second):
        device = await one.device(alice.user_id, third.device_id)
        one.client.verify_device(device)
    for name, device in (("bot", bot), ("second", second)):
        other = second if device is bot else bot
        device.client.verify_device(await device.device(other.client.user_id, other.client.device_id))
    await alice.run("send", room, "to every device")
    await asyncio.gather(bot.hears("to every device"), second.hears("to every device"))
    await third.hears(room, "to every device")
    await second.send(room, "from the second device")
    await alice.hears(room, "from the second device")
    await third.hears(room, "from the second device")
    await bot.hears("from the second device")
    step("new devices on both sides are written to")
    assert not bot.sealed, f"nio could not decrypt {bot.sealed}"
    await second.stop()
    await bot.stop()


def letters(pair: Pair) -> None:
    """Tells it."""
    # That a new device cannot read yet is no news.
    logging.getLogger("nio").setLevel(logging.CRITICAL)
    os.environ["WAXWING_TEST_HOMESERVER"] = pair.waxwing.url
    sys.path[:0] = [str(CLIENTS), str(CLIENTS / "nio")]
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(asyncio.wait_for(talk(pair, Path(directory)), LIMIT))
