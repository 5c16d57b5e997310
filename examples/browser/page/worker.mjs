// Runs the networks away from the page, so that it stays responsive.
import * as ort from "./ort/ort.wasm.min.mjs";

const base = new URL("./", import.meta.url).href;
ort.env.wasm.wasmPaths = `${base}ort/`;
// Threads share memory, which browsers allow where the server sends the headers of serve.py.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

const sessions = new Map();

/** Fetch a model and make its session, once. */
function open(file) {
  if (!sessions.has(file)) {
    const opening = create(file);
    opening.catch(() => sessions.delete(file)); // so that it can be tried again
    sessions.set(file, opening);
  }
  return sessions.get(file);
}

async function create(file) {
  let response;
  try {
    response = await fetch(new URL(file, base));
  } catch {
    throw new Error(`The model ${file} could not be fetched: the server does not answer.`);
  }
  if (!response.ok) {
    throw new Error(`The model ${file} is missing (status ${response.status}). build.py puts it beside the page.`);
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`The model ${file} cannot be used: ${error.message ?? error}`);
  }
  // The first run takes memory and compiles; it is not to be timed.
  await run(session, new Uint8Array(64 * 64 * 3), 64, 64);
  return session;
}

async function run(session, rgb, height, width) {
  const feeds = { [session.inputNames[0]]: new ort.Tensor("uint8", rgb, [1, height, width, 3]) };
  const began = performance.now();
  const outputs = await session.run(feeds);
  const milliseconds = performance.now() - began;
  return { output: outputs[session.outputNames[0]], milliseconds };
}

/** Leave out every fourth value, the opacity. */
function toRgb(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

async function answer({ file, task, pixels, height, width }) {
  const session = await open(file);
  if (pixels === undefined) {
    return { threads: ort.env.wasm.numThreads };
  }
  const { output, milliseconds } = await run(session, toRgb(pixels), height, width);
  // Labels are 64-bit integers, as ONNX has them; there are fewer than 65536 classes.
  const values = task === "segmentation" ? Uint16Array.from(output.data, Number) : Float32Array.from(output.data);
  output.dispose();
  return { values, milliseconds };
}

self.onmessage = async ({ data }) => {
  try {
    const result = await answer(data);
    self.postMessage({ id: data.id, result }, result.values ? [result.values.buffer] : []);
  } catch (error) {
    self.postMessage({ id: data.id, error: error.message ?? String(error) });
  }
};
