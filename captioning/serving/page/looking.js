// Where the model looked for each word: as light on the image, and in words for those who do not see it.

const DARK = 0.8;
const WIDTH = 512; // of the drawing, stretched over the image

// attention: rows of cells of the frame. frame: which part of the image the model saw, as shares of its width and height.
export function draw(canvas, attention, frame, ratio) {
  canvas.width = WIDTH;
  canvas.height = Math.max(1, Math.round(WIDTH / ratio));
  const cells = document.createElement("canvas");
  cells.width = cells.height = attention.length;
  const pixels = new ImageData(attention.length, attention.length);
  const most = Math.max(...attention.flat(), 1e-6);
  attention.flat().forEach((value, cell) => (pixels.data[4 * cell + 3] = 255 * DARK * (1 - value / most)));
  cells.getContext("2d").putImageData(pixels, 0, 0);
  const pen = canvas.getContext("2d");
  pen.fillStyle = `rgb(0 0 0 / ${DARK})`;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const box = [frame.left * canvas.width, frame.top * canvas.height, frame.width * canvas.width, frame.height * canvas.height];
  pen.clearRect(...box);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(cells, ...box);
}

const NAMES = [
  ["upper left", "top", "upper right"],
  ["left", "centre", "right"],
  ["lower left", "bottom", "lower right"],
];
const MORE = 1.6; // times what an even look would give to a place, for it to be named

// "looked mostly at the upper left", by the thirds of the whole image; at most two of the nine places are named.
export function place(attention, frame) {
  const places = new Map();
  const side = attention.length;
  const total = attention.flat().reduce((sum, value) => sum + value, 0) || 1;
  attention.forEach((row, down) =>
    row.forEach((value, across) => {
      const name = NAMES[third(frame.top + (frame.height * (down + 0.5)) / side)][third(frame.left + (frame.width * (across + 0.5)) / side)];
      const its = places.get(name) ?? { name, share: 0, even: 0 };
      places.set(name, { name, share: its.share + value / total, even: its.even + 1 / side ** 2 });
    }),
  );
  const [first, second] = [...places.values()].filter(({ share, even }) => share > MORE * even).sort((one, other) => other.share - one.share);
  if (!first) return "looked all over the image";
  const named = second && first.share < 2 * second.share ? [first, second] : [first];
  const where = named.map(({ name }) => `the ${name}`).join(" and ");
  const isMost = named.reduce((sum, { share }) => sum + share, 0) > 0.5;
  return isMost ? `looked mostly at ${where}` : `looked at ${where} more than elsewhere`;
}

function third(share) {
  return Math.min(2, Math.floor(3 * share));
}

// One stop of the Tab key, the arrows go from word to word. shown(word or null) is called with the word under the pointer, else the
// focused one, else the one that was pressed.
export function fillToolbar(toolbar, words, shown) {
  let pointed = null;
  let focused = null;
  let pressed = null;
  const show = () => shown(pointed ?? focused ?? pressed);
  const buttons = words.map((word, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word.word;
    button.setAttribute("aria-label", `${word.word}: ${word.place}`);
    button.setAttribute("aria-pressed", "false");
    button.tabIndex = index ? -1 : 0;
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && ((pointed = word), show()));
    button.addEventListener("pointerleave", () => ((pointed = null), show()));
    button.addEventListener("focus", () => {
      focused = word;
      buttons.forEach((other) => (other.tabIndex = other === button ? 0 : -1));
      show();
    });
    button.addEventListener("blur", () => ((focused = null), show()));
    button.addEventListener("click", () => press(pressed === word ? null : word));
    return button;
  });
  function press(word) {
    pressed = word;
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(words[index] === word)));
    if (word === null) pointed = focused = null;
    show();
  }
  toolbar.onkeydown = (event) => {
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (event.key === "Escape") press(null);
    if (to === undefined) return;
    event.preventDefault();
    buttons[(to + buttons.length) % buttons.length].focus();
  };
  toolbar.replaceChildren(...buttons);
}
