// The dialog with one image of the gallery and how it was made.

import { byId, element } from "./dom.js";
import { altText, fileName } from "./gallery.js";
import { duration, schedulerName, size, time } from "./words.js";

/** Shows one image. It sends `reuse`, `use` and `delete` with the record. */
export class Viewer extends EventTarget {
  #dialog = byId("viewer");
  #gallery;
  #index = 0;
  #destinations;

  /**
   * @param {Gallery} gallery
   * @param {() => object[]} destinations what an image can be sent on to
   */
  constructor(gallery, destinations) {
    super();
    this.#gallery = gallery;
    this.#destinations = destinations;
    byId("viewer-close").addEventListener("click", () => this.close());
    byId("viewer-back").addEventListener("click", () => this.#move(-1));
    byId("viewer-next").addEventListener("click", () => this.#move(1));
    byId("viewer-reuse").addEventListener("click", () => this.#send("reuse"));
    byId("viewer-delete").addEventListener("click", () => this.#send("delete"));
    // Not on the dialog: a button that becomes disabled loses the focus to the page.
    document.addEventListener("keydown", (event) => {
      if (!this.#dialog.open) return;
      if (event.key === "ArrowLeft") this.#move(-1);
      if (event.key === "ArrowRight") this.#move(1);
    });
    // A click on the backdrop.
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.close();
    });
    gallery.addEventListener("change", () => this.#dialog.open && this.#refresh());
  }

  /** Opens the dialog with the image at a place of the gallery. */
  open(index) {
    this.#index = index;
    this.#show();
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  /** Closes the dialog. */
  close() {
    this.#dialog.close();
  }

  get #record() {
    return this.#gallery.records[this.#index];
  }

  #send(type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail: { record: this.#record, ...detail } }));
  }

  #move(by) {
    const index = this.#index + by;
    if (index < 0 || index >= this.#gallery.records.length) return;
    this.#index = index;
    this.#show();
    if (document.activeElement?.disabled) byId("viewer-close").focus();
  }

  #refresh() {
    if (this.#gallery.records.length === 0) {
      this.close();
      return;
    }
    this.#index = Math.min(this.#index, this.#gallery.records.length - 1);
    this.#show();
  }

  #show() {
    const record = this.#record;
    const image = byId("viewer-image");
    image.src = this.#gallery.url(record);
    image.alt = altText(record);
    byId("viewer-title").textContent = `Image ${this.#index + 1} of ${this.#gallery.records.length}`;
    byId("viewer-prompt").textContent = record.settings.prompt || "Without a prompt";
    byId("viewer-facts").replaceChildren(...facts(record).flatMap(([name, text]) => [
      element("dt", {}, name),
      element("dd", {}, text),
    ]));
    byId("viewer-back").disabled = this.#index === 0;
    byId("viewer-next").disabled = this.#index === this.#gallery.records.length - 1;
    byId("viewer-download").href = this.#gallery.url(record);
    byId("viewer-download").download = fileName(record);
    const destinations = this.#destinations();
    byId("viewer-use").hidden = destinations.length === 0;
    document.querySelector("#viewer-use .buttons").replaceChildren(...useButtons(destinations, (destination) => {
      this.#send("use", { destination });
    }));
  }
}

/** Makes a button for each place that an image can be sent on to. */
export function useButtons(destinations, use) {
  return destinations.map((destination) => {
    const { label, model } = destination;
    const title = `With the model ${model}`;
    return element("button", { type: "button", title, onclick: () => use(destination) }, label);
  });
}

function facts(record) {
  const { settings } = record;
  const loras = (settings.loras ?? []).map(({ name, scale }) => `${name} ${scale}`).join(", ");
  const all = [
    ["Negative", settings.negative],
    ["Model", settings.model],
    ["Task", record.task],
    ["Size", size(record.width, record.height)],
    ["Steps", settings.steps],
    ["Guidance", settings.guidance],
    ["Strength", settings.strength],
    ["Noise", settings.noise],
    ["Scheduler", settings.scheduler && schedulerName(settings.scheduler)],
    ["LoRAs", loras],
    ["Seed", settings.count > 1 ? `${settings.seed}, image ${record.index + 1} of ${settings.count}` : settings.seed],
    ["Created", `${time(record.time)}, in ${duration(record.milliseconds)}`],
  ];
  const isGiven = ([, text]) => text !== null && text !== undefined && text !== "";
  return all.filter(isGiven).map(([name, text]) => [name, String(text)]);
}
