// The place where an image comes into being.

import { say, sayProgress } from "./announce.js";
import { byId, element } from "./dom.js";
import { blobOf } from "./request.js";
import { count, duration } from "./words.js";

const TITLE = document.title;

/** Shows the images of one request, from the first preview to the last pixel. */
export class Stage {
  #tiles = [];
  #urls = [];

  /**
   * Shows empty tiles.
   * @param {{count: number, width: number, height: number, steps: number}} expected
   * @param {string|null} under the address of the input image, shown until there is a preview
   */
  start(expected, under) {
    byId("empty").hidden = true;
    byId("outcome").hidden = true;
    byId("running").hidden = false;
    const tiles = byId("tiles");
    tiles.hidden = false;
    tiles.className = `tiles ${{ 1: "one", 2: "two", 3: "four", 4: "four" }[expected.count] ?? "many"}`;
    tiles.style.setProperty("--ratio", expected.width / expected.height);
    tiles.style.setProperty("--natural", `${Math.max(expected.width, expected.height)}px`);
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
    this.#tiles = Array.from({ length: expected.count }, () => new Tile(expected, under));
    tiles.replaceChildren(...this.#tiles.map(({ host }) => host));
    byId("progress").removeAttribute("value");
    this.#text("Waiting for the server", "");
    say(`Generating ${count(expected.count, "image")}.`);
  }

  /** Shows how far the request is. */
  progress({ step = 0, steps = 0, eta_ms: left, queue_position: ahead }) {
    if (step === 0) {
      const text = ahead > 0 ? `Waiting: ${count(ahead, "request")} ahead` : "Waiting: next in line";
      this.#text(text, "");
      sayProgress(text);
      return;
    }
    const bar = byId("progress");
    bar.max = steps;
    bar.value = step;
    byId("bar").firstElementChild.style.inlineSize = `${(step / steps) * 100}%`;
    const percent = Math.round((step / steps) * 100);
    document.title = `${percent} % · ${TITLE}`;
    if (step >= steps) this.#text("Decoding the image", "");
    else this.#text(`Step ${step} of ${steps}`, left > 0 ? `about ${duration(left)} left` : "");
    sayProgress(`${percent} percent.`);
  }

  /** Shows an image on the way. */
  async preview({ image_index: index = 0, b64_json: data, output_format: format }) {
    await this.#tiles[index]?.preview(await createImageBitmap(blobOf(data, format)));
  }

  /** Shows a finished image; `open` opens it. Returns its address, which is good until the next request. */
  image(index, blob, alt, open) {
    const url = URL.createObjectURL(blob);
    this.#urls.push(url);
    this.#tiles[index]?.image(url, alt, open);
    return url;
  }

  /** Ends with a text and buttons. */
  end(text, buttons = []) {
    byId("running").hidden = true;
    byId("outcome").hidden = false;
    byId("outcome-text").textContent = text;
    byId("outcome-actions").replaceChildren(...buttons);
    document.title = TITLE;
    for (const tile of this.#tiles) tile.end();
    say(text);
  }

  /** Goes back to the empty stage, after a failure. */
  clear() {
    byId("running").hidden = true;
    byId("outcome").hidden = true;
    byId("tiles").hidden = true;
    byId("empty").hidden = false;
    document.title = TITLE;
  }

  #text(text, left) {
    byId("progress-text").textContent = text;
    byId("progress-left").textContent = left;
  }
}

/** One image. */
class Tile {
  #canvas = element("canvas");
  #isDone = false;

  constructor({ width, height }, under) {
    this.host = element("div", { className: "tile busy" }, this.#canvas);
    this.host.style.aspectRatio = `${width} / ${height}`;
    if (under) this.host.prepend(element("img", { src: under, alt: "", className: "under" }));
    const factor = Math.min(1, 768 / Math.max(width, height));
    this.#canvas.width = Math.max(Math.round(width * factor), 1);
    this.#canvas.height = Math.max(Math.round(height * factor), 1);
    this.#canvas.setAttribute("aria-hidden", "true");
  }

  preview(bitmap) {
    if (this.#isDone) return;
    const context = this.#canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, this.#canvas.width, this.#canvas.height);
    // A preview with a pixel for each latent is soft in any case; the blur hides its grid.
    const isSmall = bitmap.width * 2 < this.#canvas.width;
    this.#canvas.className = isSmall ? "shown small" : "shown";
    bitmap.close();
  }

  image(url, alt, open) {
    this.#isDone = true;
    const image = element("img", { src: url, alt });
    const button = element("button", { type: "button", title: "Open", onclick: open }, image);
    this.host.classList.remove("busy");
    this.host.replaceChildren(button);
  }

  end() {
    this.host.classList.remove("busy");
    if (!this.#isDone) this.host.classList.add("stopped");
  }
}
