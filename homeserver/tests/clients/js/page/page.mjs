// A small web client on matrix-js-sdk: keys, and what was synced, are in IndexedDB, the session in local storage, media
// tokens in a service worker. The driver calls its functions from outside.

import { base64Of, bytesOf, Device, until } from "../device.mjs";

const STORAGE = "waxwing-test";
const stored = localStorage.getItem("session");

const page = {
    device: undefined,
    comparison: undefined,

    /** Starts a device by one of the ways that `Device` knows, and keeps its session for the next load of the page. */
    async start(way, homeserver, name, password) {
        page.device = await Device[way](homeserver, name, password, STORAGE);
        localStorage.setItem("session", JSON.stringify({ homeserver, password, session: page.device.session }));
        await page.started();
    },

    /** Starts the device of the session that was kept. */
    async resume() {
        const { homeserver, password, session } = JSON.parse(stored);
        page.device = await Device.open(homeserver, session, password, STORAGE);
        await page.started();
    },

    async started() {
        const worker = (await navigator.serviceWorker.ready).active;
        worker.postMessage({ token: page.device.client.getAccessToken() });
        document.querySelector("#state").textContent = page.device.userId;
    },

    call: (method, ...words) => page.device[method](...words),

    /** Runs a verification up to the comparison; returns the emoji. */
    async compare(method, ...words) {
        page.comparison = await page.device[method](...words);
        return page.comparison.emoji;
    },

    confirm: () => page.comparison.confirm(),

    /** Draws a picture and makes it our avatar. */
    async draw() {
        const canvas = new OffscreenCanvas(640, 480);
        const pen = canvas.getContext("2d");
        pen.fillStyle = "#a0522d";
        pen.fillRect(0, 0, 640, 480);
        const picture = await canvas.convertToBlob({ type: "image/png" });
        const { content_uri } = await page.device.client.uploadContent(picture, { name: "me.png", type: "image/png" });
        await page.device.client.setAvatarUrl(content_uri);
    },

    /** Shows somebody's avatar as an `img`, whose requests know no token; returns its size. */
    async show(userId) {
        const avatar = async () => (await page.device.client.getProfileInfo(userId)).avatar_url;
        const mxc = await until("an avatar", avatar);
        const image = new Image();
        image.src = page.device.client.mxcUrlToHttp(mxc, 96, 96, "scale", false, true, true);
        document.querySelector("#pictures").append(image);
        await image.decode();
        return [image.naturalWidth, image.naturalHeight];
    },

    /** Decrypts a picture and shows it; returns its size. */
    async showEncrypted(roomId, name) {
        const image = new Image();
        image.src = URL.createObjectURL(new Blob([bytesOf(await page.device.receives(roomId, name))]));
        await image.decode();
        return [image.naturalWidth, image.naturalHeight];
    },

    /** A drawn picture as text, for `sendFile`. */
    async picture(width, height) {
        const blob = await new OffscreenCanvas(width, height).getContext("2d").canvas.convertToBlob();
        return base64Of(new Uint8Array(await blob.arrayBuffer()));
    },

    /** The longest that an answer to `/sync` took, in milliseconds. */
    longestPoll() {
        const syncs = performance.getEntriesByType("resource").filter((entry) => entry.name.includes("/v3/sync"));
        return Math.max(0, ...syncs.map((entry) => entry.duration));
    },
};

globalThis.page = page;
await navigator.serviceWorker.register("./media.js");
await until("the service worker", () => navigator.serviceWorker.controller);
if (stored) await page.resume();
document.body.dataset.loaded = "yes";
