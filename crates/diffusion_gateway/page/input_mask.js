// The mask of the input image, shown on its thumbnail.

import { byId } from "./dom.js";
import { maskOfFile } from "./mask.js";
import { drawMask, MaskEditor } from "./mask_editor.js";

/** The mask of the input image. Another image has no mask at first. */
export class InputMask {
  #input;
  #mask = null;
  #editor = new MaskEditor();

  /** @param {InputImage} input */
  constructor(input) {
    this.#input = input;
    input.addEventListener("change", () => this.#set(null));
    byId("mask-draw").addEventListener("click", () => this.edit());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#show());
  }

  /** Whether something is masked. */
  get isDrawn() {
    return this.#mask !== null;
  }

  /** Returns the mask's file; null without a mask. */
  async file() {
    return (await this.#mask?.file()) ?? null;
  }

  /** Takes the mask of a file. */
  async setFile(file) {
    this.#set(await maskOfFile(file, this.#input.size));
  }

  /** Opens the editor. */
  async edit() {
    const mask = await this.#editor.edit({ url: this.#input.url, ...this.#input.size }, this.#mask);
    if (mask !== undefined) this.#set(mask);
  }

  /** Shows or hides what belongs to masks. */
  setShown(isShown) {
    for (const id of ["mask-draw", "mask-state", "input-mask"]) byId(id).hidden = !isShown;
  }

  #set(mask) {
    this.#mask = mask;
    this.#show();
  }

  #show() {
    const canvas = byId("input-mask");
    const percent = this.#mask ? Math.max(Math.round(this.#mask.coverage() * 100), 1) : 0;
    byId("mask-state").textContent = this.#mask ? `${percent} % masked` : "No mask yet";
    byId("mask-draw").lastChild.data = this.#mask ? "Edit mask" : "Draw mask";
    if (this.#input.size) {
      canvas.width = Math.min(this.#input.size.width, 256);
      canvas.height = Math.max(Math.round((canvas.width * this.#input.size.height) / this.#input.size.width), 1);
    }
    if (this.#mask) drawMask(this.#mask, canvas);
    else canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  }
}
