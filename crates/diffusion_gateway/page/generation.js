// One request for images, from the button to the gallery.

import { ApiError, generate } from "./api.js";
import { byId, element, icon } from "./dom.js";
import { altText, fileName } from "./gallery.js";
import { blobOf, request } from "./request.js";
import { useButtons } from "./viewer.js";
import { count, duration } from "./words.js";

/** Runs one request at a time. It sends `failed` with an error, and `use` with a record and a destination. */
export class Generation extends EventTarget {
  #stage;
  #store;
  #gallery;
  #viewer;
  #destinations;
  #running = null;

  constructor({ stage, store, gallery, viewer, destinations }) {
    super();
    this.#stage = stage;
    this.#store = store;
    this.#gallery = gallery;
    this.#viewer = viewer;
    this.#destinations = destinations;
  }

  /** Stops the request: the closed connection cancels it at the server. */
  stop() {
    this.#running?.abort();
  }

  /**
   * Sends a request and shows what comes back.
   * @param {object} settings of the form
   * @param {object} task the task of the model
   * @param {{image: Blob, mask: Blob|null, size: object, url: string}|null} input
   */
  async run(settings, task, input) {
    this.#running = new AbortController();
    showRunning(true);
    const started = performance.now();
    this.#stage.start(expected(settings, task, input), input?.url ?? null);
    const images = [];
    let last = null;
    try {
      for await (const event of generate(request(settings, input), this.#running.signal)) {
        const kind = event.type.split(".").at(-1);
        if (kind === "progress") this.#stage.progress((last = event));
        else if (kind === "partial_image") await this.#stage.preview(event).catch(() => {});
        else if (kind === "completed") images.push(await this.#completed(event, { settings, task, input, started }));
      }
      if (images.length === 0) throw new ApiError("The connection to the gateway ended before the image was complete.");
      this.#finished(images, started);
    } catch (error) {
      if (error.name === "AbortError") this.#stopped(last);
      else this.#failed(error);
    } finally {
      if (images.length > 0) await this.#keep(images.map(({ record }) => record));
      this.#running = null;
      showRunning(false);
    }
  }

  async #completed(event, { settings, task, input, started }) {
    const blob = blobOf(event.b64_json, event.output_format);
    const bitmap = await createImageBitmap(blob);
    const record = {
      time: Date.now(),
      blob,
      width: bitmap.width,
      height: bitmap.height,
      settings,
      task: task.label,
      index: event.image_index ?? 0,
      milliseconds: performance.now() - started,
      input: input?.image ?? null,
      mask: input?.mask ?? null,
    };
    bitmap.close();
    const url = this.#stage.image(record.index, blob, altText(record), () => this.#open(record));
    return { record, url };
  }

  #open(record) {
    const index = this.#gallery.records.findIndex(({ id }) => id === record.id);
    if (index >= 0) this.#viewer.open(index);
  }

  #finished(images, started) {
    const [{ record, url }] = images;
    const { seed } = record.settings;
    const text = `${count(images.length, "image")} in ${duration(performance.now() - started)}, seed ${seed}`;
    if (images.length > 1) {
      this.#stage.end(text);
      return;
    }
    const properties = { className: "button small", href: url, download: fileName(record) };
    const download = element("a", properties, icon("download"), "Download");
    const use = (destination) => {
      this.dispatchEvent(new CustomEvent("use", { detail: { record, destination } }));
    };
    const buttons = useButtons(this.#destinations(), use);
    for (const button of buttons) button.className = "small";
    const lead = buttons.length > 0 ? [element("span", { className: "hint" }, "Use as input:")] : [];
    this.#stage.end(text, [...lead, ...buttons, download]);
  }

  #stopped(last) {
    const place = last?.step > 0 ? ` at step ${last.step} of ${last.steps}` : "";
    this.#stage.end(`Stopped${place}.`);
  }

  #failed(error) {
    this.#stage.clear();
    const known = error instanceof ApiError ? error : new ApiError(`The page failed: ${error.message}`);
    this.dispatchEvent(new CustomEvent("failed", { detail: known }));
  }

  async #keep(records) {
    try {
      // The first image of a request is the first one in the gallery.
      await this.#store.add(records.toReversed());
    } catch {
      const message = "The browser has no room for the image: download it, or delete others from the gallery.";
      this.dispatchEvent(new CustomEvent("failed", { detail: new ApiError(message) }));
    }
  }
}

function expected(settings, task, input) {
  const scale = task.scales ?? 1;
  const width = settings.width ?? (input?.size.width ?? 512) * scale;
  const height = settings.height ?? (input?.size.height ?? 512) * scale;
  return { count: settings.count, width, height };
}

function showRunning(isRunning) {
  const [from, to] = isRunning ? [byId("generate"), byId("stop")] : [byId("stop"), byId("generate")];
  const hadFocus = document.activeElement === from;
  to.hidden = false;
  if (hadFocus) to.focus({ preventScroll: true });
  from.hidden = true;
  byId("bar").hidden = !isRunning;
  byId("bar").firstElementChild.style.inlineSize = "0";
}
