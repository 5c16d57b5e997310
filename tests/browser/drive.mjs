// Drives a browser for test_page.py: a JSON command a line on standard input, a JSON answer a line on standard output.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [executablePath, viewport] = [process.argv[2], JSON.parse(process.argv[3] ?? '{"width":1200,"height":900}')];
const TIMEOUT = 120_000;

const browser = await chromium.launch({
  executablePath,
  args: [
    "--use-fake-device-for-media-stream",
    // Whatever is asked of another host fails, and is told.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
  ],
});
const context = await browser.newContext({ viewport, colorScheme: process.argv[4] ?? "light" });
const page = await context.newPage();
page.setDefaultTimeout(TIMEOUT);
const seen = { requests: [], problems: [] };
context.on("request", (request) => seen.requests.push(request.url()));
page.on("pageerror", (error) => seen.problems.push(String(error)));
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type())) seen.problems.push(message.text());
});

/** Wait until the page has an answer or an error. */
async function settle() {
  await page.waitForFunction(() => {
    const busy = document.querySelector("[aria-busy=true]") || document.getElementById("status").textContent.includes("…");
    return !document.getElementById("error").hidden || !busy;
  });
}

/** What the page shows, in words and numbers. */
function read() {
  const visible = (id) => !document.getElementById(id).hidden;
  const text = (id) => (visible(id) ? document.getElementById(id).textContent : "");
  const rows = (selector) => [...document.querySelectorAll(selector)];
  const common = (row) => ({ class: Number(row.dataset.class), name: row.querySelector("b").textContent });
  return {
    ...Object.fromEntries(["status", "error", "note", "time", "caption", "about"].map((id) => [id, text(id)])),
    isolated: window.crossOriginIsolated,
    classes: visible("classes")
      ? rows("#classes li").map((row) => ({
          ...common(row),
          probability: row.querySelector("progress").value,
          text: row.querySelector(".share").textContent,
        }))
      : [],
    legend: visible("segments")
      ? rows("#legend li").map((row) => ({
          ...common(row),
          share: row.querySelector(".share").textContent,
          colour: getComputedStyle(row.querySelector("i")).backgroundColor.match(/\d+/g).map(Number),
        }))
      : [],
  };
}

/** The colours of a canvas, as base64 of its RGBA bytes. */
function pixels(id) {
  const canvas = document.getElementById(id);
  const { width, height } = canvas;
  const bytes = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return { width, height, hidden: canvas.hidden, rgba: btoa(text) };
}

const COMMANDS = {
  async open({ url }) {
    await page.goto(url);
    await settle();
    return page.evaluate(read);
  },
  async picture({ path }) {
    await page.setInputFiles("#file", path);
    await settle();
    return page.evaluate(read);
  },
  async task({ name }) {
    await page.check(`#tasks input[value=${name}]`);
    await settle();
    return page.evaluate(read);
  },
  async read() {
    return page.evaluate(read);
  },
  async pixels({ id }) {
    return page.evaluate(pixels, id);
  },
  async permit({ camera }) {
    await (camera ? context.grantPermissions(["camera"]) : context.clearPermissions());
    return {};
  },
  async camera() {
    await page.click("#camera");
    await page.waitForFunction(
      () =>
        !document.getElementById("error").hidden ||
        (document.getElementById("camera").ariaPressed === "true" && document.getElementById("time").textContent),
    );
    return page.evaluate(read);
  },
  async frames({ count }) {
    for (let i = 0; i < count; i += 1) {
      const before = await page.evaluate(() => document.getElementById("picture").toDataURL());
      await page.waitForFunction((before) => document.getElementById("picture").toDataURL() !== before, before);
    }
    return { button: await page.textContent("#camera") };
  },
  async click({ selector }) {
    await page.click(selector);
    return page.evaluate(read);
  },
  async press({ keys }) {
    const focused = [];
    for (const key of keys) {
      await page.keyboard.press(key);
      focused.push(await page.evaluate(() => document.activeElement?.value || document.activeElement?.id));
    }
    await settle();
    return { focused, ...(await page.evaluate(read)) };
  },
  async drop({ name, type, text }) {
    const transfer = await page.evaluateHandle(
      ([name, type, text]) => {
        const transfer = new DataTransfer();
        if (name) transfer.items.add(new File([text], name, { type }));
        return transfer;
      },
      [name, type, text],
    );
    await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
    await settle();
    return page.evaluate(read);
  },
  async kept() {
    await page.evaluate(() => navigator.serviceWorker.ready);
    return {};
  },
  async widths() {
    return page.evaluate(() => ({ page: document.documentElement.scrollWidth, window: window.innerWidth }));
  },
  async screenshot({ path }) {
    await page.screenshot({ path, fullPage: true });
    return {};
  },
  async seen() {
    return seen;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  let answer;
  try {
    answer = await COMMANDS[command](rest);
  } catch (error) {
    answer = { failed: String(error), seen };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
