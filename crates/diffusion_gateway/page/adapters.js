// The LoRAs and the words of embeddings of a model.

import { byId, element } from "./dom.js";

/** Most LoRAs of a request. */
const MOST = 8;
/** With more LoRAs than this, there is a field to find one. */
const MANY = 8;

/** Chooses LoRAs, each with a scale, and inserts words into the prompt. */
export class Adapters {
  #list = document.querySelector("#loras .loras");
  #chips = document.querySelector("#embeddings .chips");
  #filter = byId("lora-filter");
  /** The scale of each LoRA that is chosen. */
  #scales = new Map();
  #names = [];

  /** @param {(word: string) => void} insert puts a word into the prompt */
  constructor(insert) {
    this.insert = insert;
    this.#filter.addEventListener("input", () => this.#find());
  }

  /** Takes the adapters of a model. */
  configure(model) {
    this.#names = model.loras;
    byId("loras").hidden = model.loras.length === 0;
    this.#filter.hidden = model.loras.length <= MANY;
    this.#filter.value = "";
    this.#list.replaceChildren(...model.loras.map((name) => this.#row(name)));
    byId("embeddings").hidden = model.embeddings.length === 0;
    const chip = (word) =>
      element("button", { type: "button", title: "Insert into the prompt", onclick: () => this.insert(word) }, word);
    this.#chips.replaceChildren(...model.embeddings.map(chip));
    this.#limit();
  }

  /** The chosen LoRAs that the model has, as the backend's argument `loras`. */
  get loras() {
    const chosen = this.#names.filter((name) => this.#scales.has(name));
    return chosen.map((name) => ({ name, scale: this.#scales.get(name) }));
  }

  /** Chooses these LoRAs and no others. */
  set loras(list) {
    this.#scales = new Map(list.map(({ name, scale }) => [name, scale ?? 1]));
    this.#list.replaceChildren(...this.#names.map((name) => this.#row(name)));
    this.#limit();
  }

  #row(name) {
    const scale = this.#scales.get(name);
    const box = element("input", { type: "checkbox", checked: scale !== undefined, value: name });
    const number = element("input", { type: "number", min: -10, max: 10, step: 0.1, value: scale ?? 1 });
    number.ariaLabel = `Scale of ${name}`;
    number.hidden = !box.checked;
    box.addEventListener("change", () => {
      number.hidden = !box.checked;
      if (box.checked) this.#scales.set(name, Number(number.value));
      else this.#scales.delete(name);
      this.#limit();
    });
    number.addEventListener("input", () => this.#scales.set(name, Number(number.value)));
    return element("li", {}, element("label", {}, box, element("span", {}, name)), number);
  }

  /** A request has at most 8 LoRAs. */
  #limit() {
    const isFull = this.loras.length >= MOST;
    for (const box of this.#list.querySelectorAll("input[type=checkbox]")) box.disabled = isFull && !box.checked;
  }

  #find() {
    const words = this.#filter.value.toLowerCase();
    for (const row of this.#list.children) row.hidden = !row.textContent.toLowerCase().includes(words);
  }
}

/** Puts a word at the cursor of a text field, with a space before and after it. */
export function insertWord(field, word) {
  const { selectionStart: start, selectionEnd: end, value } = field;
  const before = value.slice(0, start);
  const after = value.slice(end);
  const text = `${before === "" || /\s$/.test(before) ? "" : " "}${word}${/^\s/.test(after) ? "" : " "}`;
  field.setRangeText(text, start, end, "end");
  field.dispatchEvent(new Event("input", { bubbles: true }));
  field.focus();
}
