// Drives `waxwing-client` by its command line, as a person would, for scenarios in JavaScript.

import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { PATIENCE, until } from "./device.mjs";

export const HOMESERVER = process.env.WAXWING_TEST_HOMESERVER;
export const PASSWORD = "correct horse battery staple";
export const unique = (name) => `${name}-${randomBytes(4).toString("hex")}`;

const RESTART = fileURLToPath(new URL("../../../../scripts/with-server.sh", import.meta.url));

/** Says what has been shown, and after how many seconds. */
export function step(words) {
    process.stdout.write(`   ${(performance.now() / 1000).toFixed(1).padStart(5)} s  ${words}\n`);
}

export function check(holds, what) {
    if (!holds) throw new Error(`not so: ${what}`);
}

/** Ends the server by a signal, while everybody is connected, and starts it again. */
export async function restartServer(signal) {
    await finished(spawn(RESTART, ["--restart", signal], { stdio: ["ignore", "inherit", "inherit"] }), "restart");
}

async function finished(child, what) {
    let said = "", complained = "";
    child.stdout?.on("data", (data) => (said += data));
    child.stderr?.on("data", (data) => (complained += data));
    const limit = setTimeout(() => child.kill(), PATIENCE * 2);
    const code = await new Promise((resolve, reject) => child.on("close", resolve).on("error", reject));
    clearTimeout(limit);
    if (code !== 0) throw new Error(`${what}: ${complained}`);
    return said.trim();
}

/** A person with one device of waxwing-client, whose keys are in a directory. */
export class Person {
    constructor(directory, home, name) {
        this.home = join(directory, home);
        this.name = name ?? unique(home);
    }

    start(...words) {
        return spawn(process.env.WAXWING_TEST_CLIENT, ["--home", this.home, ...words]);
    }

    async run(words, input = "") {
        const child = this.start(...words);
        child.stdin.end(input);
        return await finished(child, words.join(" "));
    }

    /** Makes an account with cross-signing and a key backup. */
    async register() {
        const said = await this.run(["register", HOMESERVER, this.name], PASSWORD);
        this.userId = said.match(/@\S+/)[0];
        await this.run(["bootstrap"], PASSWORD);
        this.recoveryKey = await this.run(["backup", "create"]);
    }

    /** A new device that takes identity and room keys from the server by the recovery key. */
    async restore(recoveryKey) {
        const said = await this.run(["login", HOMESERVER, this.name], PASSWORD);
        this.userId = said.match(/@\S+/)[0];
        return await this.run(["backup", "restore"], recoveryKey);
    }

    /** The last messages of a room; attachments go to `save`. Fails if one cannot be read. */
    async messages(room, save) {
        const said = await this.run(["read", room, "--limit", "100", "--json", ...(save ? ["--save", save] : [])]);
        const found = said.split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
        const sealed = found.filter((message) => message.note?.startsWith("[sealed"));
        check(sealed.length === 0, `${this.name} can decrypt ${JSON.stringify(sealed)}`);
        return found;
    }

    /** Waits for a text, which must have come encrypted. */
    async hears(room, text) {
        const look = async () => (await this.messages(room)).find((message) => message.text === text);
        const message = await until(`${this.name} to read ${text}`, look);
        check(message.encrypted, `${text} came encrypted`);
        return message;
    }

    /** Waits for an attachment; returns its content. */
    async receives(room, file, save) {
        const look = async () => (await this.messages(room)).some((message) => message.file === file);
        await until(`${this.name} to receive ${file}`, look);
        await this.messages(room, save);
        return await readFile(join(save, file));
    }

    /**
     * Verifies a user by emoji: `words` are what follows the user id. Returns the emoji and a function
     * that confirms them and waits for the end.
     */
    async verify(userId, ...words) {
        const child = this.start("verify", userId, "--seconds", String(PATIENCE / 1000), ...words);
        const done = finished(child, `verify ${userId}`);
        let said = "";
        child.stdout.on("data", (data) => (said += data));
        const emoji = () => [...said.matchAll(/^ {4}(\S+) {2}\S/gm)].map((found) => found[1]);
        await Promise.race([until("the emoji of waxwing-client", () => emoji().length === 7), done]);
        const confirm = async () => {
            child.stdin.end("y\n");
            check((await done).includes(`${userId} is verified`), "verified");
        };
        return { emoji: emoji(), confirm };
    }
}

/** Compares what two sides show, and confirms it on both. */
export async function agree(first, second) {
    const [ours, theirs] = await Promise.all([first, second]);
    check(ours.emoji.length === 7, "seven emoji are shown");
    check(String(ours.emoji) === String(theirs.emoji), `${ours.emoji} are ${theirs.emoji}`);
    await Promise.all([ours.confirm(), theirs.confirm()]);
}
