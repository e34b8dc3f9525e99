// matrix-js-sdk with its Rust crypto in Node beside waxwing-client: register, cross-sign, verify, talk, restart, restore
// on new devices.

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { format } from "node:util";
import { base64Of, Device } from "./device.mjs";
import { agree, check, HOMESERVER, PASSWORD, Person, restartServer, step, unique } from "./waxwing-client.mjs";

const picture = Uint8Array.from({ length: 250_000 }, (_, index) => (index * 7) % 251);

async function verify(js, alice, room) {
    await agree(js.ask(alice.userId, room), alice.verify(js.userId, "--accept"));
    await js.trusts(alice.userId);
    step("verified by emoji in the room, js asked");
    await agree(alice.verify(js.userId), js.answer(alice.userId));
    step("verified by emoji from device to device, waxwing-client asked");
}

async function talk(js, alice, room, directory) {
    await js.send(room, "hello from js");
    const heard = await alice.hears(room, "hello from js");
    check(heard.sender === js.userId && heard.verified, "waxwing-client knows that js is verified");
    await alice.run(["send", room, "hello from waxwing"]);
    check((await js.hears(room, "hello from waxwing")).shield === 0, "js shows no warning");
    step("messages both ways");

    await writeFile(join(directory, "feathers.bin"), picture);
    await alice.run(["send-file", room, join(directory, "feathers.bin")]);
    check((await js.receives(room, "feathers.bin")) === base64Of(picture), "js has the file");
    await js.sendFile(room, "berries.png", base64Of(picture));
    const saved = await alice.receives(room, "berries.png", join(directory, "saved"));
    check(Buffer.compare(saved, picture) === 0, "waxwing-client has the file");
    step("attachments both ways");
}

async function restart(js, alice, room) {
    await restartServer("TERM");
    await js.send(room, "after the restart");
    await alice.hears(room, "after the restart");
    await alice.run(["send", room, "still here"]);
    await js.hears(room, "still here");
    step("the server stopped and came back");
}

async function newDevices(js, recoveryKey, alice, room, directory) {
    await js.backedUp();
    const second = await Device.login(HOMESERVER, js.userId, PASSWORD);
    check((await second.restore(recoveryKey)) > 0, "keys came back");
    const said = ["hello from js", "hello from waxwing", "feathers.bin", "berries.png", "still here"];
    const history = await second.history(room);
    check(said.every((body) => history.includes(body)), `a restored device reads all of ${history}`);
    step("js restored on a new device by the recovery key");

    const third = await Device.login(HOMESERVER, js.userId, PASSWORD);
    const asking = third.ask(js.userId);
    await agree(asking, Promise.any([js.answer(js.userId), second.answer(js.userId)]));
    await third.hasSecrets();
    await third.crypto.restoreKeyBackup();
    check((await third.history(room)).includes("hello from js"), "a verified device reads the history");
    step("a third device verified by its owner's other one, secrets handed over");

    const phone = new Person(directory, "phone", alice.name);
    check((await phone.restore(alice.recoveryKey)).includes("room keys imported"), "waxwing-client restored");
    const read = (await phone.messages(room)).map((message) => message.text ?? message.file);
    check(said.every((body) => read.includes(body)), `a restored waxwing-client reads all of ${read}`);
    step("waxwing-client restored on a new device by the recovery key");

    await js.send(room, "to all devices");
    await Promise.all([second, third].map((device) => device.hears(room, "to all devices")));
    await Promise.all([alice, phone].map((device) => device.hears(room, "to all devices")));
    await phone.run(["send", room, "from the phone"]);
    for (const device of [js, second, third]) {
        check((await device.hears(room, "from the phone")).shield === 0, "the new device is trusted");
    }
    step("everybody reads new messages on all devices");
    return [second, third];
}

async function slidingSync(js, recoveryKey, alice, room) {
    await js.backedUp();
    const device = await Device.login(HOMESERVER, js.userId, PASSWORD, undefined, true);
    check((await device.restore(recoveryKey)) > 0, "keys came back");
    await device.hears(room, "from the phone");
    await device.send(room, "over sliding sync");
    await Promise.all([js.hears(room, "over sliding sync"), alice.hears(room, "over sliding sync")]);
    await alice.run(["send", room, "to sliding sync"]);
    await device.hears(room, "to sliding sync");
    step("js on a device with sliding sync");
    return device;
}

async function main(directory) {
    const alice = new Person(directory, "alice");
    const [js] = await Promise.all([Device.register(HOMESERVER, unique("js"), PASSWORD), alice.register()]);
    const recoveryKey = await js.setUpKeys();
    step("registered, cross-signing, secret storage and key backup set up");
    const room = await js.createRoom("Aviary", [alice.userId]);
    await alice.run(["join", room]);
    await js.joined(room, alice.userId);

    await verify(js, alice, room);
    await talk(js, alice, room, directory);
    await restart(js, alice, room);
    const devices = [js, ...(await newDevices(js, recoveryKey, alice, room, directory))];
    devices.push(await slidingSync(js, recoveryKey, alice, room));
    for (const device of devices) {
        const failures = await device.unreadable();
        check(failures.length === 0, `everything can be decrypted: ${failures}`);
        device.stop();
    }
}

// The library is written for Node 22; this is what Node 20 lacks of it.
Promise.withResolvers ??= function () {
    const held = {};
    held.promise = new this((resolve, reject) => Object.assign(held, { resolve, reject }));
    return held;
};

// What the library says is only of use when something fails.
const log = [];
for (const level of ["debug", "log", "info", "warn", "error", "trace"]) {
    console[level] = (...words) => log.push(format(...words));
}
const directory = await mkdtemp(join(tmpdir(), "waxwing-js-"));
let code = 0;
try {
    await main(directory);
} catch (error) {
    process.stderr.write(`${log.slice(-200).join("\n")}\n${error.stack}\n${JSON.stringify(error.data ?? "")}\n`);
    code = 1;
}
await rm(directory, { recursive: true, force: true });
process.exit(code);
