"""Drives `waxwing-client` by its command line, as a person would, for scenarios in Python."""

import asyncio
import json
import os
import re
import secrets
import time
from pathlib import Path

HOMESERVER = os.environ["WAXWING_TEST_HOMESERVER"]
PASSWORD = "correct horse battery staple"
# How long anything may take that should happen at once; the machine may be busy with other tests.
PATIENCE = 60
BEGAN = time.monotonic()
RESTART = Path(__file__).resolve().parents[3] / "scripts" / "with-server.sh"


def step(words: str) -> None:
    """Says what has been shown, and after how many seconds."""
    print(f"   {time.monotonic() - BEGAN:5.1f} s  {words}", flush=True)


async def restart_server(signal: str) -> None:
    """Ends the server by a signal, while everybody is connected, and starts it again."""
    process = await asyncio.create_subprocess_exec(RESTART, "--restart", signal)
    assert await process.wait() == 0, "the server did not come back"


async def until(what: str, found, patience: float = PATIENCE):
    """Calls `found`, which may be a coroutine function, until it answers something true; returns that."""
    deadline = time.monotonic() + patience
    while True:
        answer = found()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.1)


class Person:
    """A person with one device of waxwing-client, whose keys are in a directory."""

    def __init__(self, directory: Path, name: str):
        self.home = directory / name
        self.name = f"{name}-{secrets.token_hex(4)}"
        self.user_id = ""
        self.device_id = ""
        # A device that came later cannot read what was said before.
        self.late = False

    async def _start(self, arguments: tuple[str, ...]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            os.environ["WAXWING_TEST_CLIENT"],
            "--home",
            self.home,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str, stdin: str = "") -> str:
        process = await self._start(arguments)
        said, complained = await asyncio.wait_for(process.communicate(stdin.encode()), PATIENCE)
        assert process.returncode == 0, f"{' '.join(arguments)}: {complained.decode()}"
        return said.decode().strip()

    async def register(self) -> None:
        """Makes an account with cross-signing."""
        said = await self.run("register", HOMESERVER, self.name, stdin=PASSWORD)
        self.user_id, self.device_id = re.search(r"(@\S+) \(device (\S+)\)", said).groups()
        await self.run("bootstrap", stdin=PASSWORD)

    async def login(self, person: "Person") -> None:
        """Becomes another device of a person's, without the keys of the first."""
        self.name, self.late = person.name, True
        said = await self.run("login", HOMESERVER, self.name, stdin=PASSWORD)
        self.user_id, self.device_id = re.search(r"(@\S+) \(device (\S+)\)", said).groups()

    async def fingerprint(self) -> str:
        return re.search(r"device key (\S+)", await self.run("whoami"))[1]

    async def messages(self, room: str, save: Path | None = None) -> list[dict]:
        """The last messages of a room, oldest first; attachments go to `save`. Fails if one cannot be read."""
        extra = ["--save", save] if save else []
        said = await self.run("read", room, "--limit", "100", "--json", *extra)
        found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        sealed = [message for message in found if (message["note"] or "").startswith("[sealed")]
        assert self.late or not sealed, f"{self.name} cannot decrypt {sealed}"
        return found

    async def hears(self, room: str, text: str) -> dict:
        """Waits for a text, which must have come encrypted."""

        async def look():
            return next((m for m in await self.messages(room) if text == m["text"]), None)

        message = await until(f"{self.name} to read {text!r}", look)
        assert message["encrypted"], message
        return message

    async def receives(self, room: str, file: str, save: Path) -> bytes:
        """Waits for an attachment and returns its decrypted content."""

        async def look():
            return any(m["file"] == file and m["encrypted"] for m in await self.messages(room))

        await until(f"{self.name} to receive {file}", look)
        await self.messages(room, save=save)
        return (save / file).read_bytes()

    async def verify(self, user_id: str, compare, accept: bool = False) -> None:
        """Verifies a user by emoji; `compare` is asked whether the other side shows those that we see."""
        arguments = ("verify", user_id, "--seconds", str(PATIENCE)) + (("--accept",) if accept else ())
        process = await self._start(arguments)

        async def converse():
            emoji = []
            while len(emoji) < 7:
                line = (await process.stdout.readline()).decode()
                assert line, (await process.stderr.read()).decode()
                emoji += re.findall(r"^ {4}(\S+) {2}\S", line)
            process.stdin.write(b"y\n" if await compare(emoji) else b"n\n")
            return await process.communicate()

        said, complained = await asyncio.wait_for(converse(), PATIENCE * 2)
        assert process.returncode == 0, complained.decode()
        assert f"{user_id} is verified" in said.decode()
