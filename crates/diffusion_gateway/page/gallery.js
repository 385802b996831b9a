// The grid of kept images.

import { byId, element } from "./dom.js";
import { MOST_IMAGES } from "./store.js";
import { count, shortened } from "./words.js";

/** What a screen reader says for an image. */
export function altText(record) {
  return record.settings.prompt ? shortened(record.settings.prompt, 200) : "Image without a prompt";
}

/** The name of a downloaded file. */
export function fileName(record) {
  const words = record.settings.prompt.toLowerCase().match(/[a-z0-9]+/g) ?? ["image"];
  const end = record.settings.format === "jpeg" ? "jpg" : record.settings.format;
  return `${words.slice(0, 8).join("-").slice(0, 60)}-${record.settings.seed}.${end}`;
}

/** Shows the records of a store. It sends `open` with the place of the image that the user wants to see. */
export class Gallery extends EventTarget {
  records = [];
  #store;
  #urls = new Map();
  #items = new Map();

  /** @param {Store} store */
  constructor(store) {
    super();
    this.#store = store;
    store.addEventListener("change", () => this.refresh());
  }

  /** Reads the store again. */
  async refresh() {
    this.records = await this.#store.all();
    const ids = new Set(this.records.map(({ id }) => id));
    for (const [id, url] of this.#urls) {
      if (ids.has(id)) continue;
      URL.revokeObjectURL(url);
      this.#urls.delete(id);
      this.#items.delete(id);
    }
    const items = this.records.map((record) => this.#item(record));
    const grid = byId("gallery");
    // Items that are there stay, so that their images do not load again and the focus stays.
    items.forEach((item, index) => {
      if (grid.children[index] !== item) grid.insertBefore(item, grid.children[index] ?? null);
    });
    while (grid.children.length > items.length) grid.lastChild.remove();
    this.#note();
    this.dispatchEvent(new Event("change"));
  }

  /** Returns the address of a record's image in this page. */
  url(record) {
    if (!this.#urls.has(record.id)) this.#urls.set(record.id, URL.createObjectURL(record.blob));
    return this.#urls.get(record.id);
  }

  #item(record) {
    const known = this.#items.get(record.id);
    if (known) return known;
    const image = element("img", { src: this.url(record), alt: altText(record), loading: "lazy", decoding: "async" });
    image.width = record.width;
    image.height = record.height;
    const open = () => {
      const index = this.records.findIndex(({ id }) => id === record.id);
      this.dispatchEvent(new CustomEvent("open", { detail: index }));
    };
    const item = element("li", {}, element("button", { type: "button", title: altText(record), onclick: open }, image));
    this.#items.set(record.id, item);
    return item;
  }

  #note() {
    const number = this.records.length;
    const place = this.#store.isLasting ? "kept in this browser only" : "gone after a reload: this browser keeps none";
    const limit = number >= MOST_IMAGES ? `; the newest ${MOST_IMAGES} are kept` : "";
    byId("gallery-note").textContent =
      number === 0 ? `The newest ${MOST_IMAGES} images are ${place}.` : `${count(number, "image")}, ${place}${limit}`;
    byId("gallery-clear").hidden = number === 0;
  }
}
