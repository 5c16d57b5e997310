// Keeps the page for when its server is away: the server is asked first, what was kept comes where it does not answer.
const KEPT = "kornia-mvit";

async function keepAll() {
  const cache = await caches.open(KEPT);
  const { files } = await (await fetch("models.json")).json();
  await cache.addAll(["./", "models.json", ...files]);
}

async function answer(request) {
  const cache = await caches.open(KEPT);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreVary: true });
    if (kept) return kept;
    throw error;
  }
}

self.addEventListener("install", (event) => event.waitUntil(keepAll().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && new URL(url).origin === self.location.origin) event.respondWith(answer(event.request));
});
