// Width and height.

import { byId, element } from "./dom.js";
import { size as sizeText } from "./words.js";

/** Aspect ratios on offer. */
const RATIOS = [
  [1, 1],
  [3, 4],
  [4, 3],
  [2, 3],
  [3, 2],
  [9, 16],
  [16, 9],
];
/** An input image with more pixels than this many images of the model is scaled down. */
const MANY = 1.5;

/** The fields of the size, and what they mean for the task. */
export class Size {
  #width = byId("width");
  #height = byId("height");
  #note = byId("size-note");
  #ratios = document.querySelector("#size .ratios");
  #model = null;
  #task = null;
  #input = null;
  /** Whether the user chose the size. */
  isChanged = false;

  constructor() {
    for (const field of [this.#width, this.#height]) {
      field.addEventListener("input", () => {
        this.isChanged = true;
        this.#show();
      });
      field.addEventListener("change", () => this.#set(this.width, this.height));
    }
    byId("swap").addEventListener("click", () => {
      this.isChanged = true;
      this.#set(this.height, this.width);
    });
  }

  /** Takes the model, its task and the size of the input image; null without one. */
  configure(model, task, input) {
    const other = this.#input?.width !== input?.width || this.#input?.height !== input?.height;
    if (other && task.image) this.isChanged = false;
    this.#model = model;
    this.#task = task;
    this.#input = input;
    byId("size").hidden = Boolean(task.image && (task.scales || !input));
    for (const field of [this.#width, this.#height]) {
      field.min = field.step = this.#unit;
    }
    this.#makeRatios();
    const [width, height] = this.isChanged ? [this.width, this.height] : this.#standard();
    this.#set(width, height);
  }

  /** The width in pixels; null if the size follows from the input image. */
  get width() {
    return this.#read(this.#width, "width");
  }

  /** The height in pixels; null if the size follows from the input image. */
  get height() {
    return this.#read(this.#height, "height");
  }

  /** Sets the size; null is the default of the model or of the input image. */
  set(width, height) {
    this.isChanged = Boolean(width && height);
    if (!this.#task) return;
    if (this.isChanged) this.#set(width, height);
    else this.#set(...this.#standard());
  }

  get #unit() {
    return this.#task?.arguments.width?.multipleOf ?? 8;
  }

  #read(field, side) {
    if (!this.#task || this.#task.scales) return null;
    const number = Number(field.value);
    return this.#rounded(number > 0 ? number : (this.#task.arguments[side]?.default ?? this.#model.side));
  }

  #rounded(number) {
    return Math.max(Math.round(number / this.#unit) * this.#unit, this.#unit);
  }

  #standard() {
    if (this.#task.image && this.#input) return this.#fitted(this.#input.width, this.#input.height);
    const { width, height } = this.#task.arguments;
    return [width?.default ?? this.#model.side, height?.default ?? this.#model.side];
  }

  /** Returns the size of an input image, or one of the same shape that the model is made for. */
  #fitted(width, height) {
    const area = this.#model.side ** 2;
    const factor = width * height > area * MANY ? Math.sqrt(area / (width * height)) : 1;
    const round = factor === 1 ? (side) => Math.max(Math.floor(side / this.#unit), 1) * this.#unit : null;
    return [width, height].map((side) => (round ? round(side) : this.#rounded(side * factor)));
  }

  #set(width, height) {
    this.#width.value = width ?? "";
    this.#height.value = height ?? "";
    this.#show();
  }

  #makeRatios() {
    const { side } = this.#model;
    const sizes = RATIOS.map(([across, down]) => {
      const unit = Math.sqrt(side ** 2 / (across * down));
      const size = [across * unit, down * unit].map((number) => this.#rounded(number));
      return { text: `${across}:${down}`, across, down, size };
    });
    if (this.#task.image && this.#input) {
      const { width, height } = this.#input;
      sizes.unshift({ text: "Input", across: width, down: height, size: this.#fitted(width, height) });
    }
    const buttons = sizes.map(({ text, across, down, size }) => {
      const shape = element("i");
      shape.style.aspectRatio = `${across} / ${down}`;
      shape.classList.add(across > down ? "wide" : "tall");
      const button = element("button", { type: "button", title: sizeText(...size) }, shape, text);
      button.dataset.size = size.join("x");
      button.addEventListener("click", () => {
        this.isChanged = text !== "Input";
        this.#set(...size);
      });
      return button;
    });
    this.#ratios.replaceChildren(...buttons);
  }

  #show() {
    const [width, height] = [this.width, this.height];
    const chosen = Array.from(this.#ratios.children).find(({ dataset }) => dataset.size === `${width}x${height}`);
    for (const button of this.#ratios.children) button.ariaPressed = String(button === chosen);
    const limit = this.#model.maxPixels;
    const isTooLarge = width * height > limit;
    this.#note.textContent = isTooLarge
      ? `At most ${limit.toLocaleString("en")} pixels, got ${(width * height).toLocaleString("en")}.`
      : "";
    this.#note.classList.toggle("wrong", isTooLarge);
  }
}
