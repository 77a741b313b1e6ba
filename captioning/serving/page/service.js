// What is sent to the service and what comes back: an answer, or a Refusal.

import { Refusal } from "./messages.js";

const LARGE = 4 * 2 ** 20; // bytes; more are made smaller before they are sent
const SIDE = 1600; // pixels that are enough of a large photograph
const READ = /^image\/(jpeg|png|webp|gif|bmp|tiff)$/; // by the service; the browser may know more, such as AVIF
const KEY = "captioning-api-key";

export async function about() {
  return read(await fetch("v1/model", { headers: withKey({}) }).catch(unreachable), "limits");
}

// source: a File, or the address of an image. limits: of the service, where they are known.
export async function describe(source, limits, signal) {
  const isFile = source instanceof Blob;
  const headers = withKey({ "Content-Type": isFile ? "application/octet-stream" : "application/json" });
  const body = isFile ? await content(source, limits) : JSON.stringify({ image_url: source });
  const response = await fetch("describe?detail=1&num_captions=3", { method: "POST", headers, body, signal }).catch(unreachable);
  return read(response, "description");
}

// needed: a key without which it is the answer of something else.
async function read(response, needed) {
  const answer = await response.json().catch(() => null);
  if (response.ok && answer?.[needed]) return answer;
  const error = answer?.error;
  if (!error?.code) throw new Refusal("not_json", { trace: `Status ${response.status}.` });
  throw new Refusal(error.code, {
    wait: Math.min(600, Number(response.headers.get("Retry-After")) || 0),
    trace: `The service says: ${error.message}. Request ${error.request_id}.`,
  });
}

function unreachable(error) {
  throw error.name === "AbortError" ? error : new Refusal(navigator.onLine ? "network" : "offline");
}

async function content(file, limits) {
  const blob = file.size > Math.min(LARGE, limits?.bytes ?? LARGE) || !READ.test(file.type) ? await asJpeg(file) : file;
  if (limits && blob.size > limits.bytes) throw new Refusal("too_large");
  return blob.arrayBuffer().catch(() => {
    throw new Refusal("file_gone");
  });
}

// Of at most SIDE pixels a side. What the browser cannot read stays as it is: perhaps the service can.
async function asJpeg(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(scale * bitmap.width));
    canvas.height = Math.max(1, Math.round(scale * bitmap.height));
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white"; // under what is transparent, as the service does it
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return (await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9))) ?? file;
  } catch {
    return file;
  }
}

// The key stays in this tab.

export function keep(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) throw new Refusal("unauthorized"); // a header could not hold it
  sessionStorage.setItem(KEY, key);
}

export function forget() {
  sessionStorage.removeItem(KEY);
}

function withKey(headers) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...headers, "X-API-Key": key } : headers;
}
