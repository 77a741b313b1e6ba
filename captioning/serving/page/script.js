// The page: an image is given, described, and its description read, spoken and copied. Nothing is asked of any other host.

import { hasCamera, takePhoto } from "./camera.js";
import { draw, fillToolbar, place } from "./looking.js";
import { megabytes, Refusal, sentence, SENTENCES } from "./messages.js";
import * as service from "./service.js";

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const WHOLE = { left: 0, top: 0, width: 1, height: 1 };

let image = null; // the chosen file
let running = null; // the AbortController of what is being described
let limits = null; // of the service, when it has told them
let timer = null; // of the seconds to wait

// What is said. A region is emptied first: the same words are then spoken again.

const speaking = new Map();

function announce(region, text, then = () => {}) {
  clearTimeout(speaking.get(region));
  region.replaceChildren();
  if (!text) return;
  speaking.set(region, setTimeout(() => (region.replaceChildren(paragraph(text)), then()), 100));
}

function paragraph(text) {
  const element = document.createElement("p");
  element.textContent = text;
  return element;
}

const say = (text) => announce(part.status, text);

function complain(error) {
  const refusal = error instanceof Refusal ? error : new Refusal("unknown", { trace: String(error) });
  say("");
  announce(part.problem, sentence(refusal, limits));
  part["after-problem"].hidden = false;
  part.trace.hidden = !refusal.trace;
  part.trace.textContent = refusal.trace;
  part.again.hidden = !refusal.mayBeRetried || refusal.wait > 0;
  if (refusal.wait > 0) waitFor(refusal.wait);
}

function waitFor(seconds) {
  const until = Date.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    part.wait.hidden = left <= 0;
    part.wait.textContent = `You can try again in ${left} ${left === 1 ? "second" : "seconds"}.`;
    if (left > 0) return;
    clearInterval(timer);
    part.again.hidden = false;
    say("You can try again now.");
  };
  timer = setInterval(tick, 250);
  tick();
}

function forgetProblem() {
  clearInterval(timer);
  announce(part.problem, "");
  hide(part["after-problem"]);
  part.wait.hidden = true;
}

// Who is just there is not left nowhere.
function hide(element) {
  if (element.contains(document.activeElement)) part.describe.focus();
  element.hidden = true;
}

// Choosing

function choose(file, { spoken = true } = {}) {
  if (part.file.files[0] !== file) {
    const shown = new DataTransfer();
    shown.items.add(file);
    part.file.files = shown.files;
  }
  part.url.value = "";
  startAnew(file);
  showPicture(URL.createObjectURL(file), `${file.name}, ${megabytes(file.size)}`);
  if (spoken) say(`${file.name} is chosen. Press Describe.`);
}

function startAnew(file) {
  stop();
  forgetProblem();
  forgetResult();
  say("");
  image = file;
  part.chosen.hidden = true;
  update();
}

function chooseFirst(files) {
  if (files.length) choose(files[0]);
  else complain(new Refusal("not_a_file"));
}

function showPicture(source, name) {
  URL.revokeObjectURL(part.picture.src);
  part.frame.hidden = part.unseen.hidden = true;
  part.name.textContent = name;
  part.chosen.hidden = false;
  part.picture.src = source;
  return part.picture.decode().then(
    () => {
      part.frame.style.setProperty("--ratio", part.picture.naturalWidth / part.picture.naturalHeight);
      part.frame.hidden = false;
    },
    () => (part.unseen.hidden = part.picture.src !== source),
  );
}

function missing() {
  if (image || part.url.value.trim()) return "";
  return part["by-url"].hidden ? SENTENCES.nothing_chosen : "Choose an image or give an address first.";
}

function update() {
  const lacks = missing();
  part.missing.textContent = running ? "" : lacks;
  part.describe.setAttribute("aria-disabled", String(Boolean(running || lacks)));
  part.bar.hidden = !running;
  if (running) part.cancel.hidden = false;
  else hide(part.cancel);
}

// Describing

async function describe() {
  if (running) return;
  if (missing()) {
    complain(new Refusal("nothing_chosen"));
    part.file.focus();
    return;
  }
  forgetProblem();
  forgetResult();
  const mine = new AbortController();
  running = mine;
  update();
  say("Describing…");
  try {
    const answer = await service.describe(source(), limits, mine.signal);
    if (!mine.signal.aborted) await showResult(answer);
  } catch (error) {
    if (!mine.signal.aborted) complain(error);
    if (!mine.signal.aborted && error.code === "unauthorized") askForKey();
  } finally {
    if (running === mine) running = null;
    update();
  }
}

function stop() {
  running?.abort();
  running = null;
}

function cancel() {
  stop();
  update();
  say("Cancelled.");
}

function source() {
  if (image) return image;
  const address = part.url.value.trim();
  if (!/^https?:\/\/./i.test(address)) throw new Refusal("not_an_address");
  return address;
}

// The result

async function showResult(answer) {
  if (answer.picture) await showPicture(answer.picture, part.url.value.trim());
  say("");
  part.heading.hidden = part.more.hidden = false;
  announce(part.answer, answer.description, () => part.more.scrollIntoView({ block: "nearest" }));
  const best = answer.candidates?.[0];
  part.others.hidden = !best;
  part.candidates.replaceChildren(...(answer.candidates ?? []).map(candidate));
  showWords(answer.words ?? [], answer.picture || !answer.frame ? WHOLE : answer.frame);
}

function candidate({ description, log_p }) {
  const item = document.createElement("li");
  const share = 100 * Math.exp(log_p); // of all that could be said
  item.textContent = `${description} Probability ${share < 0.001 ? "less than 0.001" : share.toPrecision(2)}%.`;
  return item;
}

function showWords(words, frame) {
  const attending = words.filter((word) => word.attention?.length);
  part.looks.hidden = !attending.length;
  const told = attending.map((word) => ({ ...word, place: place(word.attention, frame) }));
  fillToolbar(part.words, told, (word) => {
    part.overlay.hidden = !word;
    part.looked.textContent = word ? `${word.word}: ${word.place}` : "";
    if (word) draw(part.overlay, word.attention, frame, part.picture.naturalWidth / part.picture.naturalHeight || 1);
  });
}

function forgetResult() {
  window.speechSynthesis?.cancel();
  silent();
  announce(part.answer, "");
  hide(part.more);
  part.heading.hidden = part.overlay.hidden = true;
  part.words.replaceChildren();
  part.others.open = false;
}

function speak() {
  if (part.speak.textContent !== "Speak aloud") {
    speechSynthesis.cancel();
    silent();
    return;
  }
  const utterance = new SpeechSynthesisUtterance(part.answer.textContent);
  utterance.lang = document.documentElement.lang;
  utterance.onend = utterance.onerror = silent;
  part.speak.textContent = "Stop speaking";
  speechSynthesis.speak(utterance);
}

function silent() {
  part.speak.textContent = "Speak aloud";
}

async function copy() {
  const text = part.answer.textContent;
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  say(copied || copyOld(text) ? "Copied." : "This browser does not let the page copy. Select the description and copy it yourself.");
}

// Without https there is no clipboard but this.
function copyOld(text) {
  const field = document.createElement("textarea");
  field.value = text;
  part.more.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  part.copy.focus();
  return copied;
}

// The key, and what the service says of itself

function askForKey() {
  part["key-form"].hidden = false;
  part.key.focus();
}

async function useKey() {
  forgetProblem();
  try {
    service.keep(part.key.value.trim());
    learn(await service.about());
    part.key.value = "";
    part.file.focus();
    part["key-form"].hidden = true;
    say("The key is right.");
  } catch (error) {
    service.forget();
    complain(error.code === "unauthorized" ? new Refusal("wrong_key") : error);
    part.key.focus();
  }
}

function learn(about) {
  limits = about.limits;
  part["by-url"].hidden = !about.image_url;
  part.model.textContent = `Its model: ${about.name}.`;
  update();
}

function listen() {
  part.form.addEventListener("submit", (event) => (event.preventDefault(), describe()));
  part["key-form"].addEventListener("submit", (event) => (event.preventDefault(), useKey()));
  part.cancel.addEventListener("click", cancel);
  part.again.addEventListener("click", () => (part.describe.focus(), describe()));
  part.speak.addEventListener("click", speak);
  part.copy.addEventListener("click", copy);
  part.file.addEventListener("change", () => (part.file.files.length ? choose(part.file.files[0], { spoken: false }) : startAnew(null)));
  part.capture.addEventListener("change", () => part.capture.files.length && choose(part.capture.files[0]));
  part.url.addEventListener("input", () => ((part.file.value = ""), startAnew(null)));
  part.photograph.addEventListener("click", photograph);
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      choose(event.clipboardData.files[0]);
    } else if (!event.target.closest?.("input")) complain(new Refusal("not_a_file"));
  });
  const over = (event, is) => (event.preventDefault(), document.body.classList.toggle("dropping", is));
  document.addEventListener("dragover", (event) => over(event, true));
  document.addEventListener("dragleave", (event) => over(event, event.relatedTarget !== null));
  document.addEventListener("drop", (event) => (over(event, false), chooseFirst(event.dataTransfer.files)));
  window.addEventListener("pagehide", () => window.speechSynthesis?.cancel());
}

async function photograph() {
  if ("capture" in part.capture) return part.capture.click();
  forgetProblem();
  const file = await takePhoto(part.camera).catch(() => complain(new Refusal("no_camera")));
  if (file) choose(file);
}

listen();
part["file-hint"].hidden = false;
part.speak.hidden = !("speechSynthesis" in window);
update();
service.about().then(learn, (refusal) => (part["key-form"].hidden = refusal.code !== "unauthorized")); // all else is said when it matters
if ("capture" in part.capture) part.photograph.hidden = false;
else hasCamera().then((has) => (part.photograph.hidden = !has));
