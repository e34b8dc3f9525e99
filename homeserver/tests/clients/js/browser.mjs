// matrix-js-sdk in a real browser, on a page of another origin than the server: log in, cross-sign, verify, talk, reload,
// restore on a fresh profile.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { build, preview } from "vite";
import { PATIENCE } from "./device.mjs";
import { agree, check, HOMESERVER, PASSWORD, restartServer, step, unique } from "./waxwing-client.mjs";

const directory = await mkdtemp(join(tmpdir(), "waxwing-browser-"));
const log = [];
const refused = [];
const open = [];

/** Builds the page and serves it; returns its address. */
async function serve() {
    const settings = {
        root: fileURLToPath(new URL("page", import.meta.url)),
        configFile: false,
        logLevel: "warn",
        cacheDir: join(directory, "cache"),
        build: {
            outDir: join(directory, "page"),
            emptyOutDir: true,
            target: "esnext",
            minify: false,
            chunkSizeWarningLimit: 100_000,
        },
        preview: { host: "127.0.0.1", port: 0, strictPort: false },
    };
    await build(settings);
    const server = await preview(settings);
    open.push(server);
    return server.resolvedUrls.local[0];
}

/** A browser with a profile of its own, on the page. */
class Browser {
    static async start(name, address) {
        const browser = new Browser();
        browser.name = name;
        browser.context = await chromium.launchPersistentContext(join(directory, name), {
            executablePath: "/usr/bin/chromium",
            args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        });
        open.push(browser.context);
        browser.page = browser.context.pages()[0];
        browser.page.setDefaultTimeout(PATIENCE);
        browser.page.on("console", (message) => browser.note(message.text()));
        browser.page.on("pageerror", (error) => browser.note(error.stack));
        await browser.page.goto(address);
        await browser.loaded();
        return browser;
    }

    note(text) {
        log.push(`${this.name}: ${text}`);
        if (text.includes("CORS policy")) refused.push(text);
    }

    async loaded() {
        await this.page.waitForSelector("body[data-loaded]", { state: "attached" });
    }

    async reload() {
        await this.page.reload();
        await this.loaded();
    }

    /** Calls a function of the page. */
    async run(name, ...words) {
        return await this.page.evaluate(([name, words]) => globalThis.page[name](...words), [name, words]);
    }

    /** Calls a function of the page's device. */
    async call(...words) {
        return await this.run("call", ...words);
    }

    async compare(...words) {
        return { emoji: await this.run("compare", ...words), confirm: () => this.run("confirm") };
    }
}

async function talk(bob, carol, room) {
    await bob.call("send", room, "hello from bob");
    check((await carol.call("hears", room, "hello from bob")).shield === 0, "no warning");
    await carol.call("send", room, "hello from carol");
    check((await bob.call("hears", room, "hello from carol")).shield === 0, "no warning");
    step("messages both ways");

    await bob.call("sendFile", room, "berries.png", await bob.run("picture", 300, 200));
    check(String(await carol.run("showEncrypted", room, "berries.png")) === "300,200", "the picture is shown");
    await bob.run("draw");
    check(String(await carol.run("show", bob.userId)) === "96,72", "the avatar is shown");
    step("an encrypted picture, and an avatar by an img of the page");
}

async function main() {
    const address = await serve();
    step("page built");
    const [bob, carol] = await Promise.all(["bob", "carol"].map((name) => Browser.start(name, address)));
    const [name, other] = [unique("bob"), unique("carol")];
    await Promise.all([
        bob.run("start", "register", HOMESERVER, name, PASSWORD),
        carol.run("start", "register", HOMESERVER, other, PASSWORD),
    ]);
    for (const browser of [bob, carol]) browser.userId = await browser.page.textContent("#state");
    const [recoveryKey] = await Promise.all([bob.call("setUpKeys"), carol.call("setUpKeys")]);
    step("two profiles registered, cross-signing and key backup set up");

    const room = await bob.call("createRoom", "Aviary", [carol.userId]);
    await carol.call("join", room);
    await bob.call("joined", room, carol.userId);
    await agree(bob.compare("ask", carol.userId, room), carol.compare("answer", bob.userId));
    await bob.call("trusts", carol.userId);
    await carol.call("trusts", bob.userId);
    step("verified by emoji");
    await talk(bob, carol, room);

    await bob.reload();
    await bob.call("hears", room, "hello from carol");
    await bob.call("trusts", carol.userId);
    await bob.call("send", room, "after the reload");
    await carol.call("hears", room, "after the reload");
    step("the page reloaded");

    await restartServer("KILL");
    await carol.call("send", room, "after the crash");
    await bob.call("hears", room, "after the crash");
    step("the server crashed and came back");

    await bob.call("backedUp");
    const fresh = await Browser.start("fresh", address);
    await fresh.run("start", "login", HOMESERVER, name, PASSWORD);
    check((await fresh.call("restore", recoveryKey)) > 0, "keys came back");
    const history = await fresh.call("history", room);
    const said = ["hello from bob", "hello from carol", "berries.png", "after the reload", "after the crash"];
    check(said.every((body) => history.includes(body)), `the fresh profile reads all of ${history}`);
    check(String(await fresh.run("showEncrypted", room, "berries.png")) === "300,200", "the picture is shown");
    await fresh.call("send", room, "from the fresh profile");
    for (const browser of [bob, carol]) await browser.call("hears", room, "from the fresh profile");
    step("a fresh profile restored by the recovery key");

    check((await carol.run("longestPoll")) > 500, "a poll was held");
    for (const browser of [bob, carol, fresh]) {
        const failures = await browser.call("unreadable");
        check(failures.length === 0, `${browser.name} can decrypt everything: ${failures}`);
    }
    check(refused.length === 0, `nothing is refused to a page of another origin: ${refused}`);
}

let code = 0;
try {
    await main();
} catch (error) {
    process.stderr.write(`${log.slice(-200).join("\n")}\n${error.stack}\n`);
    code = 1;
}
await Promise.allSettled(open.map((one) => one.close()));
await rm(directory, { recursive: true, force: true });
process.exit(code);
