// A device on matrix-js-sdk with its Rust crypto, as an application such as Element Web uses it. Runs in Node and in a
// browser.

import { decryptAttachment, encryptAttachment } from "matrix-encrypt-attachment";
import * as sdk from "matrix-js-sdk";
import { SlidingSync } from "matrix-js-sdk/lib/sliding-sync.js";
import {
    CryptoEvent,
    decodeRecoveryKey,
    VerificationPhase,
    VerificationRequestEvent,
    VerifierEvent,
} from "matrix-js-sdk/lib/crypto-api/index.js";

// How long anything may take that should happen at once; the machine may be busy with other tests.
export const PATIENCE = 60_000;

/** Calls `found`, which may be asynchronous, until it answers something true; returns that. */
export async function until(what, found, patience = PATIENCE) {
    const deadline = Date.now() + patience;
    for (;;) {
        const answer = await found();
        if (answer) return answer;
        if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
}

/** An encrypted file's content, from and to the text that crosses the border of a browser. */
export const bytesOf = (base64) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
export const base64Of = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));

// What sliding sync is asked for: the twenty newest rooms with their state.
const ROOMS = { timeline_limit: 20, required_state: [["*", "*"]] };
const LISTS = new Map([["all", { ranges: [[0, 19]], ...ROOMS }]]);
const LONGEST_POLL = 20_000;

const START = { lazyLoadMembers: true, initialSyncLimit: 30, threadSupport: true };

export class Device {
    /** Makes an account by the stages that the server asks for. */
    static async register(baseUrl, username, password, storage) {
        const request = (auth) =>
            sdk.createClient({ baseUrl }).registerRequest({
                username,
                password,
                auth,
                initial_device_display_name: "js",
            });
        const session = await request().catch((error) => {
            if (error.httpStatus !== 401) throw error;
            return error.data.session;
        });
        return Device.open(baseUrl, await request({ type: "m.login.dummy", session }), password, storage);
    }

    /** A new device of an account; `sliding` chooses sliding sync. */
    static async login(baseUrl, user, password, storage, sliding) {
        const login = { type: "m.login.password", identifier: { type: "m.id.user", user }, password };
        const flows = await sdk.createClient({ baseUrl }).loginFlows();
        if (!flows.flows.some((flow) => flow.type === login.type)) throw new Error("no login with a password");
        const session = await sdk.createClient({ baseUrl }).loginRequest(login);
        return Device.open(baseUrl, session, password, storage, sliding);
    }

    /**
     * Starts a device that has a session. `storage` is where a browser keeps its keys and what it has synced; without
     * it they are kept in memory.
     */
    static async open(baseUrl, session, password, storage, sliding) {
        const device = new Device();
        device.session = session;
        device.password = password;
        const options = {
            baseUrl,
            userId: session.user_id,
            deviceId: session.device_id,
            accessToken: session.access_token,
            timelineSupport: true,
            cryptoCallbacks: {
                getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], device.recoveryKey],
                cacheSecretStorageKey: (_id, _info, key) => (device.recoveryKey = key),
            },
        };
        if (storage) options.store = new sdk.IndexedDBStore({ indexedDB: globalThis.indexedDB, dbName: storage });
        device.client = sdk.createClient(options);
        await device.client.store.startup();
        device.requests = [];
        device.client.on(CryptoEvent.VerificationRequestReceived, (request) => device.requests.push(request));
        await device.client.initRustCrypto({ useIndexedDB: Boolean(storage), cryptoDatabasePrefix: storage });
        device.crypto = device.client.getCrypto();
        device.crypto.setTrustCrossSignedDevices(true);
        const slidingSync = sliding && new SlidingSync(baseUrl, LISTS, ROOMS, device.client, LONGEST_POLL);
        await device.client.startClient(slidingSync ? { ...START, slidingSync } : START);
        await until("the first sync", () => device.client.isInitialSyncComplete());
        return device;
    }

    get userId() {
        return this.client.getUserId();
    }

    /** Sets up cross-signing, secret storage and key backup; returns the recovery key. */
    async setUpKeys() {
        const authUploadDeviceSigningKeys = async (makeRequest) => {
            try {
                await makeRequest(null);
            } catch (error) {
                if (error.httpStatus !== 401) throw error;
                const identifier = { type: "m.id.user", user: this.userId };
                const { session } = error.data;
                await makeRequest({ type: "m.login.password", identifier, password: this.password, session });
            }
        };
        await this.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys });
        const key = await this.crypto.createRecoveryKeyFromPassphrase();
        await this.crypto.bootstrapSecretStorage({
            createSecretStorageKey: async () => key,
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
        });
        await until("cross-signing", () => this.crypto.isCrossSigningReady());
        await until("secret storage", () => this.crypto.isSecretStorageReady());
        await until("key backup", () => this.crypto.getActiveSessionBackupVersion());
        return key.encodedPrivateKey;
    }

    /** Takes the identity from secret storage and room keys from the backup; returns how many. */
    async restore(recoveryKey) {
        this.recoveryKey = decodeRecoveryKey(recoveryKey);
        await until("our identity", () => this.crypto.userHasCrossSigningKeys(this.userId, true));
        await this.crypto.bootstrapCrossSigning({});
        // The signature comes back as news about our own devices.
        const own = () => this.crypto.getDeviceVerificationStatus(this.userId, this.client.getDeviceId());
        await until("this device to be signed by its owner", async () => (await own()).crossSigningVerified);
        await this.crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        await this.crypto.checkKeyBackupAndEnable();
        return (await this.crypto.restoreKeyBackup()).imported;
    }

    /** Waits until every room key is in the backup. */
    async backedUp() {
        await until("the backup", async () => {
            const keys = await this.crypto.exportRoomKeys();
            const { count } = await this.client.http.authedRequest("GET", "/room_keys/version");
            return count >= keys.length;
        });
    }

    async createRoom(name, invite) {
        const room = await this.client.createRoom({
            name,
            invite,
            preset: "trusted_private_chat",
            initial_state: [
                { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            ],
        });
        await until("the room to be encrypted", () => this.crypto.isEncryptionEnabledInRoom(room.room_id));
        return room.room_id;
    }

    async join(roomId) {
        await until("the invitation", () => this.client.getRoom(roomId)?.getMyMembership() === "invite");
        await this.client.joinRoom(roomId);
        await until("the room", () => this.client.getRoom(roomId)?.getMyMembership() === "join");
        await until("the room to be encrypted", () => this.crypto.isEncryptionEnabledInRoom(roomId));
    }

    async joined(roomId, userId) {
        const member = () => this.client.getRoom(roomId)?.getMember(userId)?.membership === "join";
        await until(`${userId} to join`, member);
    }

    async send(roomId, body) {
        await this.client.sendMessage(roomId, { msgtype: "m.text", body });
    }

    async sendFile(roomId, name, base64) {
        const { data, info } = await encryptAttachment(bytesOf(base64).buffer);
        const upload = await this.client.uploadContent(new Blob([data]), {
            type: "application/octet-stream",
            includeFilename: false,
        });
        await this.client.sendMessage(roomId, {
            msgtype: "m.file",
            body: name,
            file: { ...info, url: upload.content_uri },
            info: { mimetype: "image/png" },
        });
    }

    /** Every encrypted event of the room that is here, threads included. */
    async encryptedEvents(roomId) {
        const room = this.client.getRoom(roomId);
        const events = room ? room.getLiveTimeline().getEvents() : [];
        const sealed = events.filter((event) => event.isEncrypted());
        await Promise.all(sealed.map((event) => event.getDecryptionPromise()));
        return sealed;
    }

    async event(roomId, body) {
        const find = async () =>
            (await this.encryptedEvents(roomId)).find((event) => event.getContent().body === body);
        return await until(`${this.userId} to read ${JSON.stringify(body)}`, find);
    }

    /** Waits for an encrypted text; returns how far its sender is trusted. */
    async hears(roomId, body) {
        const event = await this.event(roomId, body);
        const { shieldColour } = await this.crypto.getEncryptionInfoForEvent(event);
        return { sender: event.getSender(), eventId: event.getId(), shield: shieldColour };
    }

    async receives(roomId, name) {
        const { file } = (await this.event(roomId, name)).getContent();
        const url = this.client.mxcUrlToHttp(file.url, undefined, undefined, undefined, false, true, true);
        const headers = { Authorization: `Bearer ${this.client.getAccessToken()}` };
        const answer = await fetch(url, { headers });
        if (!answer.ok) throw new Error(`${url}: ${answer.status} ${await answer.text()}`);
        return base64Of(new Uint8Array(await decryptAttachment(await answer.arrayBuffer(), file)));
    }

    /** What was said in the room, fetched from its beginning. */
    async history(roomId) {
        const room = await until("the room", () => this.client.getRoom(roomId));
        const timeline = room.getLiveTimeline();
        while (await this.client.paginateEventTimeline(timeline, { backwards: true, limit: 20 }));
        return (await this.encryptedEvents(roomId)).map((event) => event.getContent().body);
    }

    /** Encrypted events of all rooms that this device cannot read. */
    async unreadable() {
        const events = await Promise.all(this.client.getRooms().map((room) => this.encryptedEvents(room.roomId)));
        return events
            .flat()
            .filter((event) => event.isDecryptionFailure())
            .map((event) => `${event.getId()}: ${event.decryptionFailureReason}`);
    }

    /** Asks a user in a room, or our own other devices without one, for a verification. */
    async ask(userId, roomId) {
        const request = roomId
            ? await this.crypto.requestVerificationDM(userId, roomId)
            : await this.crypto.requestOwnUserVerification();
        await phase(request, VerificationPhase.Ready);
        return await compare(await request.startVerification("m.sas.v1"));
    }

    /** Accepts the request of a user and starts the comparison, or waits for the other side to start. */
    async answer(userId, start) {
        const open = (request) => request.otherUserId === userId && request.phase === VerificationPhase.Requested;
        const request = await until("a verification request", () => this.requests.find(open));
        await request.accept();
        if (start) return await compare(await request.startVerification("m.sas.v1"));
        await phase(request, VerificationPhase.Started);
        return await compare(request.verifier);
    }

    /** Waits until our identity vouches for a user's. */
    async trusts(userId) {
        const status = () => this.crypto.getUserVerificationStatus(userId);
        return await until(`${userId} to be trusted`, async () => (await status()).isCrossSigningVerified());
    }

    /** Waits until our other device has handed over the identity and the key of the backup. */
    async hasSecrets() {
        await until("the identity's keys", async () => {
            const { privateKeysCachedLocally } = await this.crypto.getCrossSigningStatus();
            return Object.values(privateKeysCachedLocally).every(Boolean);
        });
        await until("the backup's key", () => this.crypto.getSessionBackupPrivateKey());
    }

    stop() {
        this.client.stopClient();
    }
}

async function phase(request, wanted) {
    await new Promise((resolve, reject) => {
        const look = () => {
            if (request.phase === wanted) resolve();
            else if (request.phase === VerificationPhase.Cancelled) reject(new Error("verification cancelled"));
        };
        request.on(VerificationRequestEvent.Change, look);
        look();
    });
}

/** Runs a verification up to what people compare: emoji, and a function to confirm them and wait for the end. */
async function compare(verifier) {
    let shown;
    const showing = new Promise((resolve, reject) => {
        shown = verifier.getShowSasCallbacks() ?? undefined;
        if (shown) resolve();
        verifier.on(VerifierEvent.ShowSas, (sas) => ((shown = sas), resolve()));
        verifier.on(VerifierEvent.Cancel, reject);
    });
    const verified = verifier.verify();
    verified.catch(() => {});
    await showing;
    return {
        emoji: shown.sas.emoji.map(([symbol]) => symbol),
        confirm: async () => {
            await shown.confirm();
            await verified;
        },
    };
}
