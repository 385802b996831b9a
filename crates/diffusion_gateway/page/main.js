// Puts the parts of the page together.

import { say } from "./announce.js";
import { apiKey } from "./api.js";
import { askForKey, confirmDeletion } from "./ask.js";
import { destinations, firstChoice } from "./description.js";
import { byId, element, isDialogOpen } from "./dom.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { Generation } from "./generation.js";
import { InputImage } from "./input_image.js";
import { InputMask } from "./input_mask.js";
import { loadModels } from "./models.js";
import { Stage } from "./stage.js";
import { Store } from "./store.js";
import { connectThemeSwitch } from "./theme_switch.js";
import { Viewer } from "./viewer.js";
import { count, shortened } from "./words.js";

const DRAFT = "triton-diffusion.form";
/** Milliseconds until the page asks again for the models of a gateway that does not answer. */
const AGAIN = 3000;
/** The fields of arguments that have other names in the page. */
const FIELDS = {
  model: "model",
  prompt: "prompt",
  negative_prompt: "negative",
  size: "width",
  width: "width",
  height: "height",
  n: "count",
  num_images_per_prompt: "count",
  num_inference_steps: "number-num_inference_steps",
  guidance_scale: "number-guidance_scale",
  strength: "number-strength",
  noise_level: "number-noise_level",
  seed: "seed",
  scheduler: "scheduler",
  output_compression: "quality",
  quality: "quality",
  mask: "mask-draw",
};

let models = new Map();
/** Whether a request is made ready or runs. */
let isBusy = false;
const store = new Store();
const form = new Form();
const input = new InputImage();
const mask = new InputMask(input);
const gallery = new Gallery(store);
const places = () => destinations(models, form.model?.name);
const viewer = new Viewer(gallery, places);
const generation = new Generation({ stage: new Stage(), store, gallery, viewer, destinations: places });

function showError({ message, status = 0, param = null }) {
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  byId("error").textContent = message;
  byId("error").hidden = false;
  if (status === 401) {
    askAgainForKey();
    return;
  }
  // The argument is quoted, or is a name with an underscore, or stands before a colon.
  const words = message.matchAll(/`(\w+)`|\b([a-z]+_\w+)|(?:^|: )(\w+):/g);
  const names = [param, ...Array.from(words, (found) => found.slice(1).find(Boolean))];
  const field = byId(FIELDS[names.find((name) => Object.hasOwn(FIELDS, name))] ?? "");
  if (field && field.offsetParent !== null) {
    field.ariaInvalid = "true";
    field.focus();
  } else {
    byId("error").focus();
  }
}

function hideError() {
  byId("error").hidden = true;
  byId("error").textContent = "";
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

async function askAgainForKey() {
  byId("key-button").hidden = false;
  const text = apiKey() ? "The gateway did not accept this API key." : "Requests to this gateway need its API key.";
  if (await askForKey(text)) {
    hideError();
    await showModels();
  }
}

/** What is missing for a request; null if nothing is. */
function problem() {
  const { task } = form;
  if (!task) return { message: "There is no model to send the request to.", field: byId("model") };
  if (task.image && !input.blob) return { message: "Choose an input image first.", field: byId("input-choose") };
  if (task.mask && !mask.isDrawn) {
    return { message: "Draw a mask first: what is painted is generated anew.", field: byId("mask-draw") };
  }
  return form.problem();
}

async function submit() {
  if (isBusy) return;
  isBusy = true;
  try {
    await sendRequest();
  } finally {
    isBusy = false;
  }
}

async function sendRequest() {
  hideError();
  const found = problem();
  if (found) {
    byId("error").textContent = found.message;
    byId("error").hidden = false;
    found.field.focus();
    return;
  }
  const { task } = form;
  const settings = form.settings();
  const image = task.image
    ? { image: input.blob, size: input.size, url: input.url, mask: task.mask ? await mask.file() : null }
    : null;
  if (byId("stage").getBoundingClientRect().top > innerHeight * 0.6) byId("stage").scrollIntoView();
  await generation.run(settings, task, image);
  form.setLastSeed(settings.seed);
}

/** Puts an image into the form, for another task. */
async function useAsInput(record, { task, model }) {
  viewer.close();
  await input.set(record.blob, shortened(record.settings.prompt || "Generated image", 60));
  form.choose(model, task);
  // The upscaler wants to know what the image shows. For others, a prompt may be there that says what it shall show.
  if (form.task.scales || !byId("prompt").value.trim()) byId("prompt").value = record.settings.prompt;
  hideError();
  byId("form").scrollIntoView();
  say(`The image is the input of ${model}.`);
  byId(form.task.mask ? "mask-draw" : "prompt").focus();
}

/** Puts the settings of an image into the form, with its input image and its mask. */
async function reuse(record) {
  viewer.close();
  if (record.input) await input.set(record.input, "Input of the image");
  form.fill(record.settings);
  if (record.mask) await mask.setFile(record.mask);
  byId("form").scrollIntoView();
  say("The settings of the image are in the form.");
  byId("prompt").focus();
}

async function deleteAll() {
  const text = `${count(gallery.records.length, "image")} will be deleted from this browser. This cannot be undone.`;
  if (!(await confirmDeletion("Delete all images?", text))) return;
  await store.clear();
  say("All images are deleted.");
  byId("prompt").focus();
}

async function deleteOne(record) {
  await store.delete(record.id);
  say("The image is deleted.");
}

function notice(text, ...more) {
  byId("server-notice").hidden = text === "";
  byId("server-notice").replaceChildren(text, ...more);
}

/** Asks for the models until there are some. */
async function showModels() {
  const draft = readDraft();
  try {
    models = await loadModels(draft.model, (model) => {
      models.set(model.name, model);
      form.setModel(model);
    });
  } catch (error) {
    if (error.status === 401) {
      const properties = { type: "button", className: "small", onclick: askAgainForKey };
      notice("The models are shown when the API key is known. ", element("button", properties, "Enter the key"));
      askAgainForKey();
      return;
    }
    notice(`${error.message} The page tries again in a moment.`);
    setTimeout(showModels, AGAIN);
    return;
  }
  notice(models.size === 0 ? "No model is ready. The page looks again in a moment." : "");
  if (models.size === 0) setTimeout(showModels, AGAIN);
  form.setModels(models, models.has(draft.model) ? draft.model : firstChoice(models));
  if (models.size > 0) form.fill({ ...draft, model: form.model.name });
}

function readDraft() {
  try {
    return JSON.parse(localStorage.getItem(DRAFT)) ?? {};
  } catch {
    return {};
  }
}

function keepDraft() {
  if (form.task) localStorage.setItem(DRAFT, JSON.stringify(form.draft()));
}

function connect() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("stop").addEventListener("click", () => generation.stop());
  document.addEventListener("keydown", (event) => {
    if (isDialogOpen()) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
    } else if (event.key === "Escape") {
      generation.stop();
    }
  });
  if (/Mac|iP(hone|ad)/.test(navigator.platform)) byId("generate-keys").textContent = "⌘ Return";

  form.addEventListener("change", () => {
    byId("input").hidden = !form.task?.image;
    mask.setShown(Boolean(form.task?.mask));
    hideError();
    keepDraft();
  });
  for (const type of ["input", "change", "click"]) byId("form").addEventListener(type, keepDraft);

  input.addEventListener("change", () => {
    form.setInput(input.size);
    if (input.blob && form.task && !form.task.image) {
      const task = form.model.tasks.find(({ image }) => image);
      const place = task ? { model: form.model.name, task: task.id } : places()[0];
      if (place) form.choose(place.model, place.task);
    }
  });
  input.addEventListener("wrong", ({ detail }) => showError({ message: `Input image: ${detail}` }));

  gallery.addEventListener("open", ({ detail }) => viewer.open(detail));
  viewer.addEventListener("use", ({ detail }) => useAsInput(detail.record, detail.destination));
  viewer.addEventListener("reuse", ({ detail }) => reuse(detail.record));
  viewer.addEventListener("delete", ({ detail }) => deleteOne(detail.record));
  generation.addEventListener("use", ({ detail }) => useAsInput(detail.record, detail.destination));
  generation.addEventListener("failed", ({ detail }) => showError(detail));
  byId("gallery-clear").addEventListener("click", deleteAll);
  byId("key-button").addEventListener("click", async () => {
    if (await askForKey("Requests to this gateway may need its API key.")) await showModels();
  });
}

connectThemeSwitch();
connect();
byId("key-button").hidden = apiKey() === "";
const opened = store.open().then(() => gallery.refresh());
await showModels();
await opened;
document.documentElement.dataset.ready = "";
