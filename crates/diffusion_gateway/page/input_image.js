// The input image: chosen, dropped, pasted, or taken from the gallery.

import { byId, isDialogOpen } from "./dom.js";
import { shortened, size as sizeText } from "./words.js";

/** An image with more pixels, or a larger file, is scaled down before it is sent. */
const MOST_PIXELS = 16_777_216;
const MOST_BYTES = 20 << 20;

/** The input image. It sends `change` when there is another one, and `wrong` with a message. */
export class InputImage extends EventTarget {
  /** The file that is sent; null without an input image. */
  blob = null;
  /** Its size in pixels, with its orientation applied. */
  size = null;
  #url = null;

  constructor() {
    super();
    const file = byId("input-file");
    byId("input-choose").addEventListener("click", () => file.click());
    byId("input-replace").addEventListener("click", () => file.click());
    byId("input-remove").addEventListener("click", () => {
      this.clear();
      byId("input-choose").focus();
    });
    file.addEventListener("change", () => {
      if (file.files[0]) this.set(file.files[0], file.files[0].name);
      file.value = "";
    });
    document.addEventListener("paste", (event) => {
      const pasted = imageOf(event.clipboardData);
      if (!pasted || isDialogOpen()) return;
      event.preventDefault();
      this.set(pasted, "Pasted image");
    });
    this.#listenForDrops();
  }

  /** The address of the image in this page; null without one. */
  get url() {
    return this.#url;
  }

  /**
   * Takes an image file.
   * @param {Blob} blob
   * @param {string} name shown to the user
   * @returns {Promise<boolean>} whether it is an image that this browser can read
   */
  async set(blob, name) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      this.dispatchEvent(new CustomEvent("wrong", { detail: "expected an image file: PNG, JPEG, WebP, BMP or GIF." }));
      return false;
    }
    const isLarge = bitmap.width * bitmap.height > MOST_PIXELS || blob.size > MOST_BYTES;
    const { file, width, height } = isLarge ? await scaledDown(bitmap) : { file: blob, ...dimensions(bitmap) };
    bitmap.close();
    this.#forget();
    this.blob = file;
    this.size = { width, height };
    this.#url = URL.createObjectURL(file);
    byId("input-preview").src = this.#url;
    byId("input-name").textContent = shortened(name, 60);
    byId("input-size").textContent = sizeText(width, height);
    this.#show();
    return true;
  }

  /** Removes the image. */
  clear() {
    this.#forget();
    this.#show();
  }

  #forget() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.blob = this.size = this.#url = null;
    byId("input-preview").removeAttribute("src");
  }

  #show() {
    byId("input-choose").hidden = this.blob !== null;
    byId("input-chosen").hidden = this.blob === null;
    this.dispatchEvent(new Event("change"));
  }

  #listenForDrops() {
    const veil = byId("drop-veil");
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !isDialogOpen();
    document.addEventListener("dragenter", (event) => {
      if (hasFiles(event)) veil.hidden = false;
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) veil.hidden = true;
    });
    document.addEventListener("dragover", (event) => {
      if (hasFiles(event)) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      veil.hidden = true;
      if (!hasFiles(event)) return;
      event.preventDefault();
      const dropped = imageOf(event.dataTransfer) ?? event.dataTransfer.files[0];
      if (dropped) this.set(dropped, dropped.name);
    });
  }
}

const imageOf = (data) => Array.from(data?.files ?? []).find(({ type }) => type.startsWith("image/"));

const dimensions = ({ width, height }) => ({ width, height });

async function scaledDown(bitmap) {
  const factor = Math.min(1, Math.sqrt(MOST_PIXELS / 4 / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(Math.round(side * factor), 1));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return { file: await canvas.convertToBlob({ type: "image/png" }), width, height };
}
