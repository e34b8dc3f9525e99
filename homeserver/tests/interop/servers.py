"""Two servers that federate on loopback: a Synapse and a Waxwing, with a line to each that can be cut."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

# How long a server may take to start or to stop; the machine may be busy with other tests.
START_LIMIT = 90
STOP_LIMIT = 30
# Below the range from which the kernel takes the ports of outgoing connections.
PORTS = range(20_000, 30_000)
# Lines of a server's log that a failure shows.
SHOWN_LINES = 40


def free_port() -> int:
    """A port that nobody listens on, and that this process gives once."""
    start = os.getpid() * 7 % len(PORTS)
    for offset in range(len(PORTS)):
        port = PORTS[(start + offset) % len(PORTS)]
        if port in free_port.given:
            continue
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        free_port.given.add(port)
        return port
    raise AssertionError("no port is free")


free_port.given = set()


def write_certificates(folder: Path) -> None:
    """One authority, and a certificate for loopback by name and by address."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        "req", "-x509", *curve, "-keyout", "authority.key", "-out", "authority.pem", "-days", "2",
        "-subj", "/CN=Waxwing test authority",
    )  # fmt: skip
    openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl(
        "x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key",
        "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.pem",
    )  # fmt: skip


class Line:
    """A TCP relay in front of a server's federation listener: cut, nobody reaches the server."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, to: int):
        self.loop, self.port, self.to = loop, port, to
        self.server: asyncio.Server | None = None
        self.open: set[asyncio.StreamWriter] = set()

    def _do(self, what):
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(10)

    def mend(self) -> None:
        async def listen():
            self.server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)

        if self.server is None:
            self._do(listen())

    def cut(self) -> None:
        async def close():
            self.server.close()
            self.server = None
            for writer in list(self.open):
                writer.transport.abort()

        if self.server is not None:
            self._do(close())

    async def _relay(self, reader, writer) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        self.open |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer), return_exceptions=True)
        self.open -= {writer, back}

    @staticmethod
    async def _pump(reader, writer) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


class Server:
    """A server process. `name` is its server name, `url` where its client API is."""

    kind = ""
    host = ""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop):
        self.folder = folder / self.kind
        self.folder.mkdir()
        self.certificates = folder
        self.client_port, self.federation_port, public = free_port(), free_port(), free_port()
        self.name = f"{self.host}:{public}"
        self.url = f"http://127.0.0.1:{self.client_port}"
        self.line = Line(loop, public, self.federation_port)
        self.process: subprocess.Popen | None = None
        self.configure()

    def configure(self) -> None:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def environment(self) -> dict[str, str]:
        """Settings of the surrounding shell are for another server."""
        return {k: v for k, v in os.environ.items() if not k.startswith(("WAXWING_", "PYTHON"))}

    def start(self) -> None:
        """Starts the process; `ready` waits for it."""
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.line.mend()

    def ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/_matrix/client/versions", timeout=5) as answer:
                    json.load(answer)
                return
            except (OSError, ValueError):
                assert self.process.poll() is None, f"{self.kind} ended at once\n{self.last_lines()}"
                assert time.monotonic() < deadline, f"{self.kind} did not start\n{self.last_lines()}"
                time.sleep(0.1)

    def stop(self, by: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        self.process.send_signal(by)
        try:
            self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.kind} did not stop\n{self.last_lines()}") from None
        finally:
            self.process = None

    def last_lines(self) -> str:
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-SHOWN_LINES:])


class Synapse(Server):
    """Synapse as it is released, with SQLite. Its name is an address, so that such names are used too."""

    kind = "synapse"
    host = "127.0.0.1"

    def configure(self) -> None:
        plenty = {"per_second": 10_000, "burst_count": 10_000}
        listener = {"type": "http", "bind_addresses": ["127.0.0.1"]}
        certificate = [str(self.certificates / "server.pem"), str(self.certificates / "server.key")]
        (self.folder / "log.yaml").write_text(
            json.dumps(
                {
                    "version": 1,
                    "formatters": {"short": {"format": "%(asctime)s %(name)s %(levelname)s %(request)s %(message)s"}},
                    "filters": {"context": {"()": "synapse.logging.context.LoggingContextFilter"}},
                    "handlers": {
                        "console": {
                            "class": "logging.StreamHandler", "formatter": "short", "filters": ["context"],
                        }
                    },
                    "root": {"level": os.environ.get("INTEROP_SYNAPSE_LOG", "WARNING"), "handlers": ["console"]},
                    "disable_existing_loggers": False,
                }
            )
        )  # fmt: skip
        settings = {
            "server_name": self.name,
            "report_stats": False,
            "pid_file": str(self.folder / "pid"),
            "signing_key_path": str(self.folder / "signing.key"),
            "media_store_path": str(self.folder / "media"),
            "log_config": str(self.folder / "log.yaml"),
            "database": {"name": "sqlite3", "args": {"database": str(self.folder / "homeserver.db")}},
            "listeners": [
                {**listener, "port": self.client_port, "resources": [{"names": ["client", "media"]}]},
                {
                    **listener,
                    "port": self.federation_port,
                    "tls": True,
                    "resources": [{"names": ["federation", "media", "keys"]}],
                },
            ],
            "tls_certificate_path": certificate[0],
            "tls_private_key_path": certificate[1],
            "federation_custom_ca_list": [str(self.certificates / "authority.pem")],
            "ip_range_blacklist": [],
            "trusted_key_servers": [],
            # A server that was away is asked again soon.
            "federation": {
                "destination_min_retry_interval": 500,
                "destination_max_retry_interval": 1000,
                "destination_retry_multiplier": 1,
                "client_timeout": "20s",
                "max_short_retries": 1,
                "max_long_retries": 1,
                "max_long_retry_delay": "1s",
            },
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "bcrypt_rounds": 4,
            # Who asks twice for a first sync is answered anew.
            "caches": {"sync_response_cache_duration": 0},
            "allow_public_rooms_over_federation": True,
            "allow_public_rooms_without_auth": True,
            "enable_room_list_search": True,
            "room_list_publication_rules": [{"action": "allow"}],
            "rc_message": plenty,
            "rc_registration": plenty,
            "rc_login": {"address": plenty, "account": plenty, "failed_attempts": plenty},
            "rc_joins": {"local": plenty, "remote": plenty},
            "rc_joins_per_room": plenty,
            "rc_invites": {"per_room": plenty, "per_user": plenty, "per_issuer": plenty},
            "rc_key_requests": plenty,
            "rc_media_create": plenty,
            "rc_room_creation": plenty,
            "rc_presence": {"per_user": plenty},
            "remote_media_download_burst_count": "500M",
            "remote_media_download_per_second": "100M",
            "rc_federation": {
                "window_size": 1000, "sleep_limit": 10_000, "sleep_delay": 1,
                "reject_limit": 10_000, "concurrent": 1000,
            },
        }  # fmt: skip
        # What is JSON is YAML.
        (self.folder / "homeserver.yaml").write_text(json.dumps(settings, indent=1))
        subprocess.run(
            [*self.command(), "--generate-keys"], cwd=self.folder, check=True, stdout=subprocess.DEVNULL
        )

    def command(self) -> list[str]:
        return [os.environ["INTEROP_SYNAPSE"], "-m", "synapse.app.homeserver", "-c", "homeserver.yaml"]


class Waxwing(Server):
    """Waxwing with its defaults, as far as loopback allows."""

    kind = "waxwing"
    host = "localhost"

    def configure(self) -> None:
        self.binary = os.environ["WAXWING_BIN"]
        self.settings = {
            "server_name": self.name,
            "data_dir": self.folder / "data",
            "registration": "open",
            "rate_limits.enabled": "false",
            "password.memory_kib": 64,
            "password.iterations": 1,
            "listen.client": f"127.0.0.1:{self.client_port}",
            "listen.federation": f"127.0.0.1:{self.federation_port}",
            "listen.metrics": "",
            "tls.certificate": self.certificates / "server.pem",
            "tls.key": self.certificates / "server.key",
            "tls.extra_roots": json.dumps([str(self.certificates / "authority.pem")]),
            "federation.allow_private_addresses": "true",
            "federation.presence": "true",
            "room_list_publication": "everyone",
        }
        if level := os.environ.get("INTEROP_WAXWING_LOG"):
            self.settings["log.level"] = level

    def command(self, *arguments: str) -> list[str]:
        settings = [part for name, value in self.settings.items() for part in ("--set", f"{name}={value}")]
        return [self.binary, *arguments, *settings]

    def audit(self) -> str:
        """What `waxwing audit` says of the database, which must have no words in the clear."""
        audit = self.command("audit")
        said = subprocess.run(audit, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert said.returncode == 0, said.stdout + said.stderr
        return next(line for line in said.stdout.splitlines() if line.startswith("verdict: "))


class Pair:
    """Both servers, in a folder that is removed with them."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_certificates(folder)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.synapse = Synapse(folder, self.loop)
        self.waxwing = Waxwing(folder, self.loop)
        self.both = (self.synapse, self.waxwing)

    def start(self) -> None:
        for server in self.both:
            server.start()
        for server in self.both:
            server.ready()

    def stop(self) -> None:
        for server in self.both:
            server.stop()
            server.line.cut()
        self.loop.call_soon_threadsafe(self.loop.stop)
