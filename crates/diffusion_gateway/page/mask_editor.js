// The dialog in which a mask is drawn.

import { byId } from "./dom.js";
import { Mask } from "./mask.js";

/** Opens over the page, with an image and its mask. */
export class MaskEditor {
  #dialog = byId("editor");
  #canvas = byId("editor-canvas");
  #ring = byId("editor-ring");
  #mask = null;
  #pointer = null;
  #finished = null;

  constructor() {
    const buttons = { clear: "clear", all: "all", invert: "invert" };
    for (const [id, kind] of Object.entries(buttons)) {
      byId(`editor-${id}`).addEventListener("click", () => this.#add({ kind }));
    }
    byId("editor-undo").addEventListener("click", () => this.#undo());
    byId("editor-cancel").addEventListener("click", () => this.#dialog.close());
    byId("editor-done").addEventListener("click", () => this.#finish());
    byId("editor-size").addEventListener("input", () => this.#sizeRing());
    byId("editor-rectangle").addEventListener("submit", (event) => this.#addRectangle(event));
    this.#dialog.addEventListener("keydown", (event) => {
      const isUndo = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey);
      if (!isUndo || event.target.type === "number") return;
      event.preventDefault();
      this.#undo();
    });
    this.#dialog.addEventListener("close", () => {
      this.#finished?.(undefined);
      this.#finished = null;
    });
    this.#listenToPointers();
  }

  /**
   * Opens the dialog.
   * @param {{url: string, width: number, height: number}} image
   * @param {Mask|null} mask the mask to go on with
   * @returns {Promise<Mask|null|undefined>} the mask; null if nothing is painted, undefined if the user cancels
   */
  edit(image, mask) {
    this.#mask = mask ? mask.copy() : new Mask(image);
    byId("editor-image").src = image.url;
    this.#canvas.width = this.#mask.width;
    this.#canvas.height = this.#mask.height;
    const sheet = byId("editor-sheet");
    sheet.style.aspectRatio = `${image.width} / ${image.height}`;
    sheet.style.setProperty("--ratio", image.width / image.height);
    this.#dialog.showModal();
    this.#sizeRing();
    this.#show();
    return new Promise((resolve) => (this.#finished = resolve));
  }

  #finish() {
    this.#finished?.(this.#mask.coverage() > 0 ? this.#mask : null);
    this.#finished = null;
    this.#dialog.close();
  }

  #add(stroke) {
    this.#mask.add(stroke);
    this.#show();
  }

  #undo() {
    this.#mask.undo();
    this.#show();
  }

  #addRectangle(event) {
    event.preventDefault();
    const numbers = new FormData(event.target);
    const part = (name) => Math.min(Math.max(Number(numbers.get(name)) / 100, 0), 1);
    const [left, top, width, height] = ["left", "top", "width", "height"].map(part);
    this.#add({ kind: "rectangle", left, top, width, height });
  }

  get #brushSize() {
    return Number(byId("editor-size").value) / 100;
  }

  #listenToPointers() {
    this.#canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || this.#pointer !== null) return;
      event.preventDefault();
      this.#pointer = event.pointerId;
      this.#canvas.setPointerCapture(event.pointerId);
      const kind = this.#dialog.querySelector("input[name=tool]:checked").value;
      this.#mask.add({ kind, size: this.#brushSize, points: [this.#point(event)] });
      this.#paint();
    });
    this.#canvas.addEventListener("pointermove", (event) => {
      this.#moveRing(event);
      if (event.pointerId !== this.#pointer) return;
      const moves = event.getCoalescedEvents?.() ?? [];
      for (const move of moves.length > 0 ? moves : [event]) this.#mask.extend(this.#point(move));
      this.#paint();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.#canvas.addEventListener(name, (event) => {
        if (event.pointerId !== this.#pointer) return;
        this.#pointer = null;
        this.#show();
      });
    }
    this.#canvas.addEventListener("pointerleave", () => (this.#ring.hidden = true));
  }

  #point(event) {
    const box = this.#canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.width };
  }

  #moveRing(event) {
    const box = this.#canvas.getBoundingClientRect();
    this.#ring.hidden = event.pointerType === "touch";
    this.#ring.style.left = `${event.clientX - box.left}px`;
    this.#ring.style.top = `${event.clientY - box.top}px`;
    this.#sizeRing();
  }

  #sizeRing() {
    const side = `${this.#brushSize * this.#canvas.getBoundingClientRect().width}px`;
    const { min, max, value } = byId("editor-size");
    byId("editor-size").style.setProperty("--fill", `${((value - min) / (max - min)) * 100}%`);
    this.#ring.style.width = this.#ring.style.height = side;
  }

  #paint() {
    drawMask(this.#mask, this.#canvas);
  }

  #show() {
    this.#paint();
    const percent = Math.round(this.#mask.coverage() * 100);
    byId("editor-state").textContent = `${percent} % is masked.`;
    byId("editor-undo").disabled = !this.#mask.canUndo;
  }
}

/** Draws a mask over an image, in the color of masks. */
export function drawMask(mask, canvas) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(mask.canvas, 0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = getComputedStyle(canvas).color;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
}
