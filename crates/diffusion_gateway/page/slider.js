// A number with a slider. The slider has the usual range; the number takes all that the model takes.

import { element } from "./dom.js";

/** A control for one argument of the model. Until the user changes it, it has the model's default. */
export class Slider {
  #host;
  #number;
  #range;
  #schema;

  /** @param {HTMLElement} host a `.slider` with the argument, its label and more in its data */
  constructor(host) {
    this.#host = host;
    this.argument = host.dataset.argument;
    this.isChanged = false;
    const { label, hint } = host.dataset;
    const id = `number-${this.argument}`;
    const described = hint ? { "aria-describedby": `${id}-hint` } : {};
    this.#number = element("input", { type: "number", id, inputMode: "decimal", ...described });
    this.#range = element("input", { type: "range", "aria-label": `${label}, slider` });
    host.append(element("label", { htmlFor: id }, label), this.#number, this.#range);
    if (hint) host.append(element("p", { className: "hint", id: `${id}-hint` }, hint));
    this.#number.addEventListener("input", () => this.#changed(this.#number.value));
    this.#number.addEventListener("change", () => this.#show(this.value));
    this.#range.addEventListener("input", () => {
      this.#changed(this.#range.value);
      this.#number.value = this.#range.value;
    });
  }

  /** Takes the limits and the default of a model; hides the control if the model has no such argument. */
  configure(schema) {
    this.#schema = schema;
    this.#host.hidden = !schema;
    if (!schema) return;
    const { minimum = 0, maximum = 1 } = schema;
    const { step, soft } = this.#host.dataset;
    const usual = soft ? Math.max(Math.round(schema.default * Number(soft)), minimum + 1) : maximum;
    for (const input of [this.#number, this.#range]) {
      input.min = minimum;
      input.max = input === this.#range ? Math.min(maximum, usual) : maximum;
      input.step = schema.type === "integer" ? 1 : (step ?? 0.1);
    }
    if (schema.type !== "integer") this.#number.step = "any";
    this.#host.title = `${minimum} to ${maximum}`;
    this.#show(this.isChanged ? this.value : schema.default);
  }

  /** The number; null if the model has no such argument. */
  get value() {
    if (!this.#schema) return null;
    const { minimum = 0, maximum = 1, type } = this.#schema;
    const text = this.#number.value.trim();
    const given = text === "" || Number.isNaN(Number(text)) ? this.#schema.default : Number(text);
    const limited = Math.min(Math.max(given, minimum), maximum);
    return type === "integer" ? Math.round(limited) : limited;
  }

  /** Sets the number; null or undefined is the model's default. */
  set value(number) {
    this.isChanged = number !== null && number !== undefined;
    this.#show(this.isChanged ? number : this.#schema?.default);
  }

  #changed(text) {
    this.isChanged = true;
    this.#range.value = text;
    this.#fill();
  }

  #show(number) {
    this.#number.value = number ?? "";
    this.#range.value = number ?? "";
    this.#fill();
  }

  #fill() {
    const { min, max, value } = this.#range;
    this.#range.style.setProperty("--fill", `${((value - min) / (max - min)) * 100}%`);
  }
}
