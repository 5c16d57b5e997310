// The page: takes pictures in, asks worker.mjs, and shows what it answers.

const LONGEST = { classification: 2048, segmentation: 640 }; // pixels; larger pictures would take the memory of phones
const LONGEST_AS_IT_IS = 384; // where nothing scales pictures down before the network
const LONGEST_OF_CAMERA = 640;
const TOP = 5;
const RECENT = 15; // runs of the camera whose median is told

const find = (id) => document.getElementById(id);
const picture = find("picture");
const overlay = find("overlay");
const answer = document.querySelector("[aria-labelledby=answer-title]");
const pen = picture.getContext("2d", { alpha: false, willReadFrequently: true });
const paint = overlay.getContext("2d", { willReadFrequently: true });

const models = {}; // by task
let task = "classification";
let shown = null; // the picture on the page: {image, name}
let stream = null; // of the camera, while it is on
let latest = 0; // number of the last question; answers to earlier ones are dropped

// ------------------------------------------------------------------------------------------------------------ worker

const worker = new Worker("worker.mjs", { type: "module" });
const waiting = new Map();
let questions = 0;

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
};
worker.onerror = (event) => {
  event.preventDefault();
  const error = new Error(`The network's part of the page cannot run: ${event.message ?? "worker.mjs is missing"}.`);
  for (const { reject } of waiting.values()) reject(error);
  waiting.clear();
};

function ask(question, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++questions, { resolve, reject });
    worker.postMessage({ id: questions, ...question }, transfer);
  });
}

// ---------------------------------------------------------------------------------------------------------- messages

function fail(error) {
  find("error").textContent = error.message;
  find("error").hidden = false;
  if (find("classes").hidden && find("segments").hidden) say(""); // else the last answer stands, with its picture
  answer.setAttribute("aria-busy", "false");
}

function say(text) {
  find("status").textContent = text;
}

function clearError() {
  find("error").hidden = true;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// ------------------------------------------------------------------------------------------------------------ models

async function readModels() {
  let listed;
  try {
    const response = await fetch("models.json");
    if (!response.ok) throw new Error(`status ${response.status}`);
    listed = await response.json();
  } catch (error) {
    throw new Error(`The list of models, models.json, is missing (${error.message}). build.py writes it.`);
  }
  for (const model of listed.models) models[model.task] = { ...model, runtime: listed.runtime };
  find("controls").disabled = false;
  for (const input of document.querySelectorAll("#tasks input")) {
    input.disabled = !(input.value in models);
  }
  if (!(task in models)) chooseTask(Object.keys(models)[0]);
}

async function openModel() {
  const [model, number] = [models[task], latest];
  answer.setAttribute("aria-busy", "true");
  say("Loading the network …");
  const { threads } = await ask({ file: model.file, task });
  if (model !== models[task]) return;
  const size = `${(model.bytes / 1e6).toFixed(1)} MB`;
  const many = threads === 1 ? "1 thread" : `${threads} threads`;
  find("about").textContent = `${model.title}, ${model.count} classes, ${size}; ${model.runtime}, ${many}.`;
  find("note").textContent = model.note ?? "";
  find("note").hidden = !model.note;
  if (number !== latest) return; // a picture came in the meantime
  answer.setAttribute("aria-busy", "false");
  say("Ready for a picture.");
}

function chooseTask(name) {
  task = name;
  document.querySelector(`#tasks input[value=${name}]`).checked = true;
}

async function switchTask(name) {
  chooseTask(name);
  clearError();
  clearAnswer();
  try {
    await openModel();
    if (shown && !stream) await showPicture(shown.image, shown.name);
  } catch (error) {
    fail(error);
  }
}

// ---------------------------------------------------------------------------------------------------------- pictures

async function readFile(file) {
  try {
    // The pixels as the file has them, turned as its orientation says: what Python reads.
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    const kind = file.type ? ` (${file.type})` : "";
    throw new Error(
      `${file.name}${kind} is not a picture that this browser can read. JPEG, PNG, WebP and GIF files do.`,
    );
  }
}

async function takeFile(file) {
  clearError();
  answer.setAttribute("aria-busy", "true");
  stopCamera();
  try {
    const image = await readFile(file);
    shown?.image.close?.();
    shown = { image, name: file.name };
    await showPicture(image, file.name);
  } catch (error) {
    fail(error);
  }
}

/** The longer side of the largest picture that the network of the task is given. */
function longest() {
  return models[task].preprocess.size === null ? LONGEST_AS_IT_IS : LONGEST[task];
}

/** Draw an image over white, no longer than asked for, and give its pixels. */
function draw(image, width, height, most) {
  const scale = Math.min(1, most / Math.max(width, height));
  picture.width = Math.max(1, Math.round(width * scale));
  picture.height = Math.max(1, Math.round(height * scale));
  pen.fillStyle = "white";
  pen.fillRect(0, 0, picture.width, picture.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, picture.width, picture.height);
  picture.hidden = false;
  find("hint").hidden = true;
  return pen.getImageData(0, 0, picture.width, picture.height).data;
}

async function showPicture(image, name) {
  const pixels = draw(image, image.width, image.height, longest());
  picture.setAttribute("aria-label", `The picture ${name}`);
  const whole = `${image.width} × ${image.height} pixels`;
  const scaled = image.width === picture.width && image.height === picture.height;
  find("caption").textContent = `${name}, ${whole}${scaled ? "" : `, seen at ${picture.width} × ${picture.height}`}`;
  clearAnswer();
  say("Looking …");
  const milliseconds = await look(pixels);
  if (milliseconds !== null) find("time").textContent = `${milliseconds.toFixed(0)} ms per image, preprocessing included.`;
}

/** Ask about pixels and show the answer; give the milliseconds, or null where another picture came between. */
async function look(pixels) {
  const number = ++latest;
  const [model, width, height] = [models[task], picture.width, picture.height];
  answer.setAttribute("aria-busy", "true");
  const question = { file: model.file, task: model.task, pixels, height, width };
  const { values, milliseconds } = await ask(question, [pixels.buffer]);
  if (number !== latest) return null;
  if (model.task === "segmentation") showSegments(model, values, width, height);
  else showClasses(model, values);
  answer.setAttribute("aria-busy", "false");
  return milliseconds;
}

// ------------------------------------------------------------------------------------------------------------ camera

const REFUSALS = {
  NotAllowedError: "The camera may not be used: this page has no permission. Allow it in the browser's settings.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera cannot be used; another program may have it.",
};

async function startCamera() {
  clearError();
  if (!navigator.mediaDevices) {
    fail(new Error("The camera needs a page from localhost or over https."));
    return;
  }
  let opened;
  try {
    opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    fail(new Error(REFUSALS[error.name] ?? `The camera cannot be used: ${error.message}`));
    return;
  }
  stream = opened;
  shown?.image.close?.();
  shown = null;
  find("camera").setAttribute("aria-pressed", "true");
  find("camera").textContent = "Stop the camera";
  find("status").setAttribute("aria-live", "off"); // it changes with every frame
  find("caption").textContent = "Camera";
  picture.setAttribute("aria-label", "What the camera sees");
  clearAnswer();
  say("Looking …");
  try {
    await watch(opened);
  } catch (error) {
    stopCamera();
    fail(error);
  }
}

async function watch(opened) {
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  video.srcObject = opened;
  await video.play();
  opened.getVideoTracks()[0].onended = () => {
    stopCamera();
    fail(new Error("The camera went away."));
  };
  let [recent, seen] = [[], task];
  while (stream === opened) {
    const pixels = draw(video, video.videoWidth, video.videoHeight, Math.min(longest(), LONGEST_OF_CAMERA));
    const milliseconds = await look(pixels);
    if (task !== seen) [recent, seen] = [[], task];
    else if (milliseconds !== null) {
      recent = [...recent, milliseconds].slice(-RECENT);
      const median = [...recent].sort((a, b) => a - b)[recent.length >> 1];
      find("time").textContent = `${median.toFixed(0)} ms per image, preprocessing included.`;
    }
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  const still = document.createElement("canvas"); // the last frame stays, as a picture
  [still.width, still.height] = [picture.width, picture.height];
  still.getContext("2d").drawImage(picture, 0, 0);
  shown = { image: still, name: "Picture of the camera" };
  find("camera").setAttribute("aria-pressed", "false");
  find("camera").textContent = "Use the camera";
  find("status").setAttribute("aria-live", "polite");
}

// ----------------------------------------------------------------------------------------------------------- answers

function clearAnswer() {
  latest += 1; // an answer that is under way is of what is no longer asked
  overlay.hidden = true;
  find("classes").hidden = true;
  find("segments").hidden = true;
  find("time").textContent = "";
}

function element(name, text, values = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, values);
}

function showClasses(model, probabilities) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, TOP);
  const rows = order.map((k) => {
    const row = document.createElement("li");
    const bar = element("progress", "", { max: 1, value: probabilities[k] });
    bar.setAttribute("aria-hidden", "true"); // the number beside it says the same
    row.append(element("b", model.classes[k]), element("span", percent(probabilities[k]), { className: "share" }), bar);
    row.dataset.class = k;
    return row;
  });
  find("classes").replaceChildren(...rows);
  find("classes").hidden = false;
  say(`${model.classes[order[0]]}, ${percent(probabilities[order[0]])}`);
}

function showSegments(model, labels, width, height) {
  const counts = paintLabels(model, labels, width, height);
  const present = [...counts.keys()].filter((k) => counts[k] > 0);
  const rows = present.map((k) => {
    const row = document.createElement("li");
    const patch = element("i", "");
    patch.style.backgroundColor = `rgb(${model.colours[k].join(" ")})`;
    row.append(patch, element("b", model.classes[k]));
    row.append(element("span", percent(counts[k] / labels.length), { className: "share" }));
    row.dataset.class = k;
    return row;
  });
  find("legend").replaceChildren(...rows);
  find("segments").hidden = false;
  const largest = present.sort((a, b) => counts[b] - counts[a]).slice(0, 3);
  say(`Mostly ${largest.map((k) => model.classes[k]).join(", ")}`);
}

/** Paint the class of each pixel over the picture, and count the pixels of each class. */
function paintLabels(model, labels, width, height) {
  const counts = new Array(model.colours.length).fill(0);
  const image = new ImageData(width, height);
  const words = new Uint32Array(image.data.buffer);
  const colours = new Uint32Array(Uint8ClampedArray.from(model.colours.flatMap((rgb) => [...rgb, 255])).buffer);
  for (let i = 0; i < labels.length; i += 1) {
    words[i] = colours[labels[i]];
    counts[labels[i]] += 1;
  }
  overlay.width = width;
  overlay.height = height;
  paint.putImageData(image, 0, 0);
  overlay.hidden = false;
  return counts;
}

function setOpacity() {
  const value = find("opacity").value;
  overlay.style.opacity = value / 100;
  find("opacity").setAttribute("aria-valuetext", `${value} %`);
}

// ------------------------------------------------------------------------------------------------------------- start

function listen() {
  find("file").addEventListener("change", ({ target }) => {
    if (target.files.length) takeFile(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  find("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
  find("tasks").addEventListener("change", ({ target }) => switchTask(target.value));
  find("opacity").addEventListener("input", setOpacity);
  document.addEventListener("paste", ({ clipboardData }) => {
    if (clipboardData.files.length) takeFile(clipboardData.files[0]);
  });
  const drop = document.body;
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("dropping");
  });
  drop.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) drop.classList.remove("dropping");
  });
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("dropping");
    if (event.dataTransfer.files.length) takeFile(event.dataTransfer.files[0]);
    else fail(new Error("What was dropped is no file. Save the picture first, then drop the file."));
  });
}

async function start() {
  setOpacity();
  navigator.serviceWorker?.register("sw.js").catch(() => {}); // without it the page works as long as its server does
  try {
    await readModels();
    listen();
    await openModel();
  } catch (error) {
    fail(error);
  }
}

start();
