"""matrix-nio with encryption beside waxwing-client: register, verify, talk, restart, more devices.

Two releases run this. The one with libolm verifies waxwing-client's devices by emoji, both ways round. The newer one
with vodozemac writes the commitment and the emoji of a verification in ways that only it understands itself: there the
fingerprints are compared instead, and emoji between its own devices only.
"""

import asyncio
import importlib.util
import io
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nio
from bot import PICTURE, Bot, good
from waxwing_client import PATIENCE, Person, restart_server, step, until

LIBOLM = importlib.util.find_spec("olm") is not None


async def finish(bot: Bot, transaction: str, theirs: list[str]) -> bool:
    """Compares the emoji and, when they are the same, confirms them for the bot."""
    sas = await until("the other's key", lambda: bot.client.key_verifications.get(transaction))
    await bot.step_of("m.key.verification.key", transaction)
    # The symbols: nio has names of its own for some.
    ours = [symbol for symbol, _ in sas.get_emoji()]
    if ours != theirs:
        return False
    good(await bot.client.confirm_short_auth_string(transaction))
    return True


async def waxwing_asks(person: Person, bot: Bot) -> None:
    user_id, device_id = person.user_id, person.device_id
    await bot.device(user_id, device_id)

    async def answer() -> str:
        kind = "m.key.verification.request"
        asked = lambda: next((e for e in bot.to_device if e.source["type"] == kind), None)
        transaction = (await until("a verification request", asked)).source["content"]["transaction_id"]
        await bot.say("m.key.verification.ready", user_id, device_id, transaction, methods=["m.sas.v1"])
        await bot.step_of("m.key.verification.start", transaction)
        good(await bot.client.accept_key_verification(transaction))
        return transaction

    answering = asyncio.create_task(answer())
    verifying = asyncio.create_task(
        person.verify(bot.client.user_id, lambda emoji: compared(bot, answering, emoji))
    )
    transaction = await answering
    await bot.step_of("m.key.verification.mac", transaction)
    await bot.say("m.key.verification.done", user_id, device_id, transaction)
    await verifying
    assert (await bot.device(user_id, device_id)).verified


async def compared(bot: Bot, answering: asyncio.Task, emoji: list[str]) -> bool:
    return await finish(bot, await answering, emoji)


async def nio_asks(bot: Bot, person: Person) -> None:
    user_id, device_id = person.user_id, person.device_id
    device = await bot.device(user_id, device_id)
    bot.client.unverify_device(device)
    start = bot.client.create_key_verification(device)
    transaction = start.content["transaction_id"]
    verifying = asyncio.create_task(
        person.verify(bot.client.user_id, lambda emoji: finish(bot, transaction, emoji), accept=True)
    )
    methods, now = ["m.sas.v1"], time.time_ns() // 1_000_000
    await bot.say("m.key.verification.request", user_id, device_id, transaction, methods=methods, timestamp=now)
    await bot.step_of("m.key.verification.ready", transaction)
    good(await bot.client.to_device(start))
    await bot.step_of("m.key.verification.mac", transaction)
    await bot.say("m.key.verification.done", user_id, device_id, transaction)
    await verifying
    assert device.verified


async def own_devices(first: Bot, second: Bot) -> None:
    """Two devices on nio verify each other by emoji, in nio's own way: no request comes first."""
    theirs = await first.device(second.client.user_id, second.client.device_id)
    ours = await second.device(first.client.user_id, first.client.device_id)
    good(await first.client.start_key_verification(theirs))
    transaction = first.client.get_active_sas(theirs.user_id, theirs.id).transaction_id
    await second.step_of("m.key.verification.start", transaction)
    good(await second.client.accept_key_verification(transaction))
    await first.step_of("m.key.verification.key", transaction)
    await second.step_of("m.key.verification.key", transaction)
    emoji = first.client.key_verifications[transaction].get_emoji()
    assert await finish(second, transaction, [symbol for symbol, _ in emoji])
    good(await first.client.confirm_short_auth_string(transaction))
    await until("both to be verified", lambda: theirs.verified and ours.verified)


async def second_device(person: Person, first: Bot, directory: Path, room: str) -> None:
    """A new device of the bot gets what was said before by an export, and what was not in it by asking."""
    export = directory / "keys.txt"
    await first.client.export_keys(str(export), "exported")
    # A new session, which the export does not have.
    await person.run("send", room, "after the export")
    await first.hears("after the export")
    first.client.invalidate_outbound_session(room)
    await first.send(room, "a new session")

    second = Bot(directory, "second")
    await second.login(first.client.user_id)
    for bot in (first, second):
        bot.to_device.clear()
    await own_devices(first, second)
    step("two devices on nio verified each other")
    await second.client.import_keys(str(export), "exported")
    history = good(await second.client.room_messages(room, start="", limit=50)).chunk
    read = [event.body for event in history if isinstance(event, nio.RoomMessage) and event.decrypted]
    assert {"hello from waxwing", "hello from nio", "after the crash"} <= set(read), read
    step("history read with imported keys")

    missing = next(e for e in history if isinstance(e, nio.MegolmEvent) and e.sender == first.client.user_id)
    good(await second.client.request_room_key(missing))

    requests = second.client.outgoing_key_requests
    await until("the key that was asked for", lambda: second.alive() and missing.session_id not in requests)
    assert second.client.decrypt_event(missing).body == "a new session"
    step("a key asked for and shared")

    # Both devices and waxwing-client, which trusts the new one too.
    person_device = await second.device(person.user_id, person.device_id)
    second.client.verify_device(person_device)
    await person.run("send", room, "to both devices")
    await asyncio.gather(first.hears("to both devices"), second.hears("to both devices"))
    await second.send(room, "from the second device")
    await person.hears(room, "from the second device")
    await second.stop()


async def talk(person: Person, bot: Bot, directory: Path) -> str:
    room = await person.run("create", "Aviary", "--invite", bot.client.user_id)
    await until("the invitation", lambda: bot.alive() and room in bot.client.invited_rooms)
    good(await bot.client.join(room))
    await until("the room", lambda: bot.alive() and room in bot.client.rooms)

    if LIBOLM:
        await waxwing_asks(person, bot)
        step("verified by emoji, waxwing-client asked")
        bot.to_device.clear()
        await nio_asks(bot, person)
        step("verified by emoji, nio asked")
    else:
        device = await bot.device(person.user_id, person.device_id)
        assert device.ed25519 == await person.fingerprint()
        bot.client.verify_device(device)
        step("verified by fingerprint")

    await person.run("send", room, "hello from waxwing")
    await bot.hears("hello from waxwing")
    await bot.send(room, "hello from nio")
    message = await person.hears(room, "hello from nio")
    assert message["sender"] == bot.client.user_id
    step("messages both ways")

    (directory / "feathers.bin").write_bytes(PICTURE)
    await person.run("send-file", room, str(directory / "feathers.bin"))
    assert await bot.receives("feathers.bin") == PICTURE
    await bot.send_picture(room, "berries.png")
    assert await person.receives(room, "berries.png", directory / "saved") == PICTURE
    step("attachments both ways")
    return room


async def main() -> None:
    print(f"   matrix-nio with {'libolm' if LIBOLM else 'vodozemac'}")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        person, bot = Person(directory, "alice"), Bot(directory, "bot")
        await person.register()
        await bot.register("bot")
        room = await talk(person, bot, directory)

        await restart_server("KILL")
        await bot.send(room, "after the crash")
        await person.hears(room, "after the crash")
        await person.run("send", room, "still here")
        await bot.hears("still here")
        step("the server crashed and came back")

        await second_device(person, bot, directory, room)
        await bot.reopen()
        await person.run("send", room, "good night")
        await bot.hears("good night")
        step("nio restarted from its store")
        assert not bot.sealed, f"nio could not decrypt {bot.sealed}"
        await bot.stop()


# Said only when something fails: that a new device cannot read yet is no news.
log = io.StringIO()
logging.basicConfig(stream=log)
try:
    asyncio.run(asyncio.wait_for(main(), PATIENCE * 5))
except BaseException:
    print(log.getvalue()[-5000:], file=sys.stderr)
    raise
