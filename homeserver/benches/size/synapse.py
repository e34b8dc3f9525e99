"""What a room takes in Synapse: the room of `cargo bench -p waxwing --bench size`, made through Synapse's client API.

    ~/.cache/waxwing/synapse-1.163.2/bin/python homeserver/benches/size/synapse.py MEMBERS EVENTS [SECONDS]

(scripts/compare.sh installs it there.) An application service makes the people, who join and take other names until
there are EVENTS state events. Prints bytes for each state event, by table, as the benchmark does for Waxwing, also at each
thousand members. With SECONDS people join for three quarters of that time at most and take names for the rest. SQLite,
because both have it; everything is in a temporary folder and on loopback.
"""

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from urllib.parse import quote

NAME = "localhost:8448"
CONFIG = """
server_name: "{name}"
pid_file: "{folder}/pid"
listeners: [{{port: {port}, type: http, bind_addresses: ["127.0.0.1"], resources: [{{names: [client], compress: false}}]}}]
database: {{name: sqlite3, args: {{database: "{folder}/homeserver.db"}}}}
log_config: "{folder}/log.yaml"
media_store_path: "{folder}/media"
signing_key_path: "{folder}/signing.key"
trusted_key_servers: []
suppress_key_server_warning: true
report_stats: false
macaroon_secret_key: "size"
form_secret: "size"
presence: {{enabled: false}}
app_service_config_files: ["{folder}/service.yaml"]
rc_joins: {{local: {much}, remote: {much}}}
rc_joins_per_room: {much}
rc_message: {much}
rc_room_creation: {much}
"""
SERVICE = """
id: size
url: null
as_token: "size"
hs_token: "size"
sender_localpart: service
rate_limited: false
namespaces: {users: [{exclusive: false, regex: ".*"}], aliases: [], rooms: []}
"""
LOG = """
version: 1
handlers: {file: {class: logging.FileHandler, filename: "%s/log"}}
root: {level: ERROR, handlers: [file]}
disable_existing_loggers: false
"""


class Server:
    """Synapse on empty data."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        much = "{per_second: 1000000, burst_count: 1000000}"
        self.write("homeserver.yaml", CONFIG.format(name=NAME, folder=folder, port=self.port, much=much))
        self.write("service.yaml", SERVICE)
        self.write("log.yaml", LOG % folder)
        self.command = [sys.executable, "-m", "synapse.app.homeserver", "-c", f"{folder}/homeserver.yaml"]
        subprocess.run([*self.command, "--generate-keys"], check=True, cwd=folder)
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, cwd=self.folder)
        for _ in range(3000):
            try:
                self.call("GET", "/versions")
                return
            except OSError:
                self.connection.close()
                time.sleep(0.1)
        raise RuntimeError("Synapse did not start")

    def write(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
            file.write(text)

    def call(self, method, path, body=None, user=None, base="/_matrix/client"):
        if user:
            path += f"?user_id={quote(user)}"
        headers = {"Authorization": "Bearer size", "Content-Type": "application/json"}
        text = None if body is None else json.dumps(body)
        self.connection.request(method, base + path, text, headers)
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]}")
        return json.loads(data)

    def stop(self):
        self.connection.close()
        self.process.terminate()
        self.process.wait(60)

    def add_people(self, people):
        """As rows: to be registered one by one takes longer than all else, and is not what is measured."""
        self.stop()
        with sqlite3.connect(os.path.join(self.folder, "homeserver.db")) as database:
            now = int(time.time())
            database.executemany(
                "INSERT INTO users (name, creation_ts, appservice_id) VALUES (?, ?, 'size')",
                [(person, now) for person in people],
            )
        self.start()


def sizes(path):
    """Pages by table, indexes counted with their tables, after a checkpoint."""
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        tables = database.execute(
            "SELECT m.tbl_name, SUM(s.pgsize) FROM dbstat s JOIN sqlite_master m ON m.name = s.name GROUP BY 1"
        ).fetchall()
    return dict(tables)


def report(what, before, after, events):
    grown = {table: size - before.get(table, 0) for table, size in after.items()}
    whole = sum(grown.values())
    print(f"{what:<24}{whole / 1e6:>10.1f} MB, {whole / events:.0f} bytes for each of {events} state events")
    for table, size in sorted(grown.items(), key=lambda item: -item[1]):
        if size * 100 > whole:
            print(f"  {table:<30}{size / 1e6:>10.1f} MB, {size / events:.0f} bytes for each")
    sys.stdout.flush()


# Joins between two reports.
STEP = 1000


def join_all(server, room, people, path, until):
    """Those who joined in time, and what is on disk then; prints what each step took."""
    before, done = sizes(path), 1
    for person in people[1:]:
        if time.monotonic() > until:
            break
        server.call("POST", f"/v3/join/{quote(room)}", {}, person)
        done += 1
        if done % STEP == 0:
            after = sizes(path)
            report(f"to {done} members", before, after, STEP)
            before = after
    return people[:done], sizes(path)


def rename(server, room, people, changes, until):
    """The changes that were made in time."""
    for number in range(changes):
        if time.monotonic() > until:
            return number
        person = people[number * 7919 % len(people)]
        content = {"membership": "join", "displayname": f"Member {number}, renamed"}
        server.call("PUT", f"/v3/rooms/{quote(room)}/state/m.room.member/{quote(person)}", content, person)
    return changes


def main(members, events, seconds):
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder)
        path = os.path.join(folder, "homeserver.db")
        try:
            people = [f"@member{number}:{NAME}" for number in range(members)]
            server.add_people(people)
            room = server.call(
                "POST", "/v3/createRoom", {"preset": "public_chat", "room_version": "12", "name": "Large"}, people[0]
            )["room_id"]
            empty, began = sizes(path), time.monotonic()
            people, joined = join_all(server, room, people, path, began + seconds * 0.75)
            report(f"{len(people)} joins", empty, joined, len(people) - 1)
            changes = rename(server, room, people, events - members, began + seconds)
            renamed = sizes(path)
            report(f"{changes} changes", joined, renamed, changes)
            report("all", empty, renamed, len(people) - 1 + changes)
            print(f"in {time.monotonic() - began:.0f} s")
        finally:
            server.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else float("inf"))
