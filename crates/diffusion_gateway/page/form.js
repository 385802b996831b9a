// The form: what the user asks for, within the limits of the chosen model.

import { Adapters, insertWord } from "./adapters.js";
import { byId, element, fillSelect } from "./dom.js";
import { randomSeed } from "./request.js";
import { Size } from "./size.js";
import { Slider } from "./slider.js";
import { schedulerName } from "./words.js";

/** The largest seed that JavaScript can represent. */
const LARGEST_SEED = Number.MAX_SAFE_INTEGER;
const MOST_IMAGES = 8;
const PREVIEWS = { linear: "Fast", tiny: "Good", vae: "Exact, slow" };
/** The settings of each slider. */
const SLIDERS = {
  steps: "num_inference_steps",
  guidance: "guidance_scale",
  strength: "strength",
  noise: "noise_level",
};

/** The form. It sends `change` when the model or the task changes. */
export class Form extends EventTarget {
  #models = new Map();
  #input = null;
  #taskId = "text";
  #lastPrompt = byId("prompt");
  #size = new Size();
  #adapters = new Adapters((word) => insertWord(this.#lastPrompt, word));
  #sliders = new Map();

  constructor() {
    super();
    for (const host of document.querySelectorAll(".slider")) this.#sliders.set(host.dataset.argument, new Slider(host));
    byId("model").addEventListener("change", () => this.#show());
    for (const id of ["prompt", "negative"]) {
      byId(id).addEventListener("focus", (event) => (this.#lastPrompt = event.target));
    }
    byId("format").addEventListener("change", () => this.#enableQuality());
    byId("seed-random").addEventListener("click", () => (byId("seed").value = ""));
    byId("seed-last").addEventListener("click", (event) => (byId("seed").value = event.currentTarget.dataset.seed));
    byId("reset").addEventListener("click", () => this.reset());
  }

  /** The chosen model; undefined before there are models. */
  get model() {
    return this.#models.get(byId("model").value);
  }

  /** The chosen task; undefined before there are models. */
  get task() {
    return this.model?.task(this.#taskId);
  }

  /** Takes the models, and chooses `wanted` if it is there. */
  setModels(models, wanted) {
    this.#models = models;
    const names = [...models.keys()].map((name) => [name, name]);
    fillSelect(byId("model"), names, models.has(wanted) ? wanted : names[0]?.[0]);
    byId("model").disabled = names.length === 0;
    this.#show();
  }

  /** Takes a description that came later. */
  setModel(model) {
    this.#models.set(model.name, model);
    if (model.name === byId("model").value) this.#show();
  }

  /** Chooses a model and a task, if they are there. */
  choose(model, taskId) {
    if (this.#models.has(model)) byId("model").value = model;
    this.#taskId = taskId;
    this.#show();
  }

  /** Takes the size of the input image; null without one. */
  setInput(size) {
    this.#input = size;
    if (this.task) this.#size.configure(this.model, this.task, size);
  }

  /** Remembers a seed for the button of its field. */
  setLastSeed(seed) {
    byId("seed-last").dataset.seed = seed;
    byId("seed-last").disabled = false;
  }

  /** Returns the settings of a request, with a seed. */
  settings() {
    const known = this.task.arguments;
    const text = byId("seed").value.trim();
    const sliders = Object.entries(SLIDERS).map(([name, argument]) => [name, this.#sliders.get(argument).value]);
    return {
      ...this.#choices(),
      ...Object.fromEntries(sliders),
      seed: text === "" ? randomSeed() : Number(text),
      preview: byId("preview").value in PREVIEWS ? byId("preview").value : null,
      width: this.#size.width,
      height: this.#size.height,
      count: Number(byId("count").value),
      keep: known.keep_unmasked && this.task.mask ? byId("keep").checked : null,
      syntax: known.prompt_syntax ? byId("syntax").value : null,
    };
  }

  /** Returns what is wrong with the settings, with the field to correct; null if nothing is. */
  problem() {
    const seed = byId("seed").value.trim();
    if (seed !== "" && (!/^\d+$/.test(seed) || Number(seed) > LARGEST_SEED)) {
      return { message: `seed: expected an integer from 0 to ${LARGEST_SEED}, or nothing.`, field: byId("seed") };
    }
    return null;
  }

  /** Returns what the user changed, for the next visit of the page. */
  draft() {
    const sliders = Object.entries(SLIDERS).map(([name, argument]) => {
      const slider = this.#sliders.get(argument);
      return [name, slider.isChanged ? slider.value : null];
    });
    const size = this.#size.isChanged ? { width: this.#size.width, height: this.#size.height } : {};
    return { ...this.#choices(), ...Object.fromEntries(sliders), ...size, seed: byId("seed").value };
  }

  /** Puts settings into the form, of a draft or of an image. */
  fill(settings) {
    this.choose(settings.model, settings.task ?? "text");
    byId("prompt").value = settings.prompt ?? "";
    byId("negative").value = settings.negative ?? "";
    for (const [name, argument] of Object.entries(SLIDERS)) this.#sliders.get(argument).value = settings[name];
    this.#size.set(settings.width, settings.height);
    this.#adapters.loras = settings.loras ?? [];
    byId("seed").value = settings.seed ?? "";
    for (const [id, value] of Object.entries({
      count: settings.count ?? 1,
      scheduler: settings.scheduler ?? "",
      format: settings.format ?? byId("format").value,
      preview: settings.preview ?? byId("preview").value,
      syntax: settings.syntax ?? byId("syntax").value,
    })) {
      const select = byId(id);
      if ([...select.options].some((option) => option.value === String(value))) select.value = String(value);
    }
    byId("quality").value = settings.quality ?? "";
    byId("keep").checked = settings.keep ?? true;
    this.#enableQuality();
  }

  /** Gives all settings except for the texts the model's defaults. */
  reset() {
    const { model, task, prompt, negative } = this.#choices();
    for (const id of ["preview", "syntax", "format"]) byId(id).value = "";
    this.fill({ model, task, prompt, negative });
    this.#show();
  }

  #choices() {
    const quality = byId("quality").value;
    return {
      model: byId("model").value,
      task: this.#taskId,
      prompt: byId("prompt").value.trim(),
      negative: byId("negative").value.trim(),
      loras: this.#adapters.loras,
      count: Number(byId("count").value),
      scheduler: byId("scheduler").value,
      format: byId("format").value,
      quality: byId("format").value === "png" || quality === "" ? null : Number(quality),
      preview: byId("preview").value,
    };
  }

  #show() {
    const { model } = this;
    byId("model-note").hidden = !model || model.isDescribed;
    byId("model-note").textContent = "This model does not describe itself. The limits shown are the usual ones.";
    if (!model) return;
    const task = model.task(this.#taskId) ?? (this.#input && model.tasks.find(({ image }) => image)) ?? model.tasks[0];
    this.#taskId = task?.id;
    this.#showTasks(model);
    if (!task) return;
    this.#showArguments(model, task);
    this.dispatchEvent(new Event("change"));
  }

  #showTasks(model) {
    const choices = model.tasks.map(({ id, label }) => {
      const radio = element("input", { type: "radio", name: "task", value: id, checked: id === this.#taskId });
      radio.addEventListener("change", () => {
        this.choose(model.name, id);
        document.querySelector(`#tasks input[value=${id}]`).focus();
      });
      return element("label", {}, radio, element("span", {}, label));
    });
    document.querySelector("#tasks .row").replaceChildren(...choices);
    byId("tasks").hidden = choices.length === 0;
  }

  #showArguments(model, task) {
    const known = task.arguments;
    for (const [argument, slider] of this.#sliders) slider.configure(known[argument]);
    this.#size.configure(model, task, this.#input);
    this.#adapters.configure(model);

    const most = Math.min(known.num_images_per_prompt?.maximum ?? 1, Math.floor(model.maxBatch / 2), MOST_IMAGES);
    const counts = Array.from({ length: Math.max(most, 1) }, (_, index) => [index + 1, index + 1]);
    fillSelect(byId("count"), counts, 1);

    const { scheduler, output_format: format, preview, prompt_syntax: syntax } = known;
    const own = scheduler?.default ? `The model's: ${schedulerName(scheduler.default)}` : "The model's";
    const others = (scheduler?.enum ?? []).filter((name) => name !== scheduler.default);
    fillSelect(byId("scheduler"), [["", own], ...others.map((name) => [name, schedulerName(name)])], "");
    const formats = (format?.enum ?? ["png"]).map((name) => [name, name.toUpperCase().replace("WEBP", "WebP")]);
    fillSelect(byId("format"), formats, format?.default);
    this.#enableQuality();

    const kinds = (preview?.enum ?? []).filter((kind) => kind !== "off");
    const best = preview?.default ?? (kinds.includes("tiny") ? "tiny" : kinds[0]);
    const previews = kinds.map((kind) => [kind, PREVIEWS[kind] ?? kind]);
    fillSelect(byId("preview"), kinds.length > 0 ? [...previews, ["off", "Off"]] : [["none", "Not available"]], best);
    byId("preview").disabled = kinds.length === 0;

    const syntaxes = { plain: "Plain", weighted: "Weighted: (word:1.3)" };
    fillSelect(byId("syntax"), (syntax?.enum ?? []).map((name) => [name, syntaxes[name] ?? name]), syntax?.default);
    byId("syntax").disabled = !syntax;
    byId("keep-row").hidden = !(known.keep_unmasked && task.mask);
  }

  #enableQuality() {
    byId("quality").disabled = byId("format").value === "png";
  }
}
