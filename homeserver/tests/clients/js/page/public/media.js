// Gives media requests of the page their token, as Element Web's service worker does.

let token;

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("message", (event) => (token = event.data.token));
self.addEventListener("fetch", (event) => {
    const { method, url } = event.request;
    if (method === "GET" && token && url.includes("/_matrix/client/v1/media/")) {
        event.respondWith(fetch(url, { headers: { Authorization: `Bearer ${token}` } }));
    }
});
