"""A device on matrix-nio, for scenarios."""

import asyncio
import secrets
from pathlib import Path

import nio
from nio.crypto import decrypt_attachment
from nio.event_builders import ToDeviceMessage
from waxwing_client import HOMESERVER, PASSWORD, until

PICTURE = bytes(range(256)) * 1000


def good(response):
    assert not isinstance(response, nio.ErrorResponse), response
    return response


class Bot:
    """One device on matrix-nio that syncs all the time."""

    def __init__(self, directory: Path, name: str, homeserver: str = HOMESERVER):
        self.homeserver = homeserver
        self.store = directory / name
        self.store.mkdir()
        self.messages: list[nio.RoomMessage] = []
        self.sealed: list[nio.MegolmEvent] = []
        self.to_device: list[nio.ToDeviceEvent] = []
        self.key_requests: list[nio.RoomKeyRequest] = []
        self.syncing = None

    def _client(self, user: str, device_id: str = "") -> None:
        config = nio.AsyncClientConfig(store_sync_tokens=True, encryption_enabled=True)
        self.client = nio.AsyncClient(self.homeserver, user, device_id, store_path=str(self.store), config=config)
        self.client.add_event_callback(lambda _, event: self.messages.append(event), nio.RoomMessage)
        self.client.add_event_callback(lambda _, event: self.sealed.append(event), nio.MegolmEvent)
        self.client.add_to_device_callback(self._note, (nio.KeyVerificationEvent, nio.UnknownToDeviceEvent))
        self.client.add_to_device_callback(self.key_requests.append, nio.RoomKeyRequest)

    def _note(self, event) -> None:
        self.to_device.append(event)

    async def register(self, name: str) -> None:
        self._client(name)
        good(await self.client.register(f"{name}-{secrets.token_hex(4)}", PASSWORD, "bot"))
        await self.start()

    async def login(self, user_id: str) -> None:
        self._client(user_id)
        good(await self.client.login(PASSWORD, "second device"))
        await self.start()

    async def start(self) -> None:
        """Syncs until stopped; returns after the keys were uploaded."""
        self.syncing = asyncio.create_task(self.client.sync_forever(timeout=5000, full_state=True))
        await until("the keys to be uploaded", lambda: self.alive() and not self.client.should_upload_keys)

    def alive(self) -> bool:
        if self.syncing.done():
            self.syncing.result()
        return True

    async def stop(self) -> None:
        self.syncing.cancel()
        await asyncio.gather(self.syncing, return_exceptions=True)
        await self.client.close()

    async def reopen(self) -> None:
        """Ends, and starts again from what was stored, as a bot does that is restarted."""
        old = self.client
        await self.stop()
        self._client(old.user_id, old.device_id)
        self.client.restore_login(old.user_id, old.device_id, old.access_token)
        await self.start()

    async def device(self, user_id: str, device_id: str):
        """Another's device, once its keys are here."""

        def look():
            self.alive()
            return self.client.device_store[user_id].get(device_id)

        return await until(f"the keys of {user_id}", look)

    async def send(self, room: str, text: str) -> None:
        """Sends a text; fails when a device in the room is not verified."""
        good(await self.client.room_send(room, "m.room.message", {"msgtype": "m.text", "body": text}))

    async def send_picture(self, room: str, name: str) -> None:
        upload, keys = await self.client.upload(
            lambda *_: PICTURE, "image/png", name, encrypt=True, filesize=len(PICTURE)
        )
        file = {"url": good(upload).content_uri, "mimetype": "image/png", **keys}
        content = {"msgtype": "m.image", "body": name, "info": {"size": len(PICTURE)}, "file": file}
        good(await self.client.room_send(room, "m.room.message", content))

    async def hears(self, text: str) -> None:
        await until(
            f"nio to read {text!r}",
            lambda: self.alive() and any(m.body == text and m.decrypted for m in self.messages),
        )

    async def receives(self, name: str) -> bytes:
        event = await until(
            f"nio to receive {name}",
            lambda: next((m for m in self.messages if m.body == name and m.decrypted), None),
        )
        data = good(await self.client.download(event.url)).body
        return decrypt_attachment(data, event.key["k"], event.hashes["sha256"], event.iv)

    async def step_of(self, kind: str, transaction: str) -> dict:
        """Waits for a step of a verification."""

        def look():
            self.alive()
            for event in self.to_device:
                if event.source["type"] == "m.key.verification.cancel":
                    raise AssertionError(event.source)
                content = event.source["content"]
                if event.source["type"] == kind and content["transaction_id"] == transaction:
                    return content
            return None

        return await until(kind, look)

    async def say(self, kind: str, user_id: str, device_id: str, transaction: str, **content) -> None:
        """nio knows no steps before `start` and after `mac`; what is built on it sends them itself, as here."""
        content = {"transaction_id": transaction, "from_device": self.client.device_id, **content}
        good(await self.client.to_device(ToDeviceMessage(kind, user_id, device_id, content)))
