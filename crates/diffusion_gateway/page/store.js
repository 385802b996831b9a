// The images that the browser keeps, in IndexedDB.

/** Most images that are kept. Older ones make room for new ones. */
export const MOST_IMAGES = 200;
const NAME = "triton-diffusion";
const IMAGES = "images";

const result = (request) =>
  new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });

/** The kept images, each a record with `id`, `blob` and how it was made. Without IndexedDB, they end with the page. */
export class Store extends EventTarget {
  #database = null;
  #memory = new Map();
  #nextId = 1;
  #others = new BroadcastChannel(NAME);

  /** Opens the database. */
  async open() {
    this.#others.addEventListener("message", () => this.dispatchEvent(new Event("change")));
    try {
      const opened = indexedDB.open(NAME, 1);
      opened.addEventListener("upgradeneeded", () => {
        opened.result.createObjectStore(IMAGES, { keyPath: "id", autoIncrement: true });
      });
      this.#database = await result(opened);
    } catch {
      this.#database = null;
    }
  }

  /** Whether the images are still there after a reload. */
  get isLasting() {
    return this.#database !== null;
  }

  /** Returns all records, the newest first. */
  async all() {
    const records = this.#database ? await result(this.#images("readonly").getAll()) : [...this.#memory.values()];
    return records.sort((a, b) => b.id - a.id);
  }

  /**
   * Keeps records, and gives each its id.
   * @throws if the browser has no room
   */
  async add(records) {
    for (const record of records) {
      if (this.#database) record.id = await result(this.#images("readwrite").add(record));
      else this.#memory.set((record.id = this.#nextId++), record);
    }
    await this.#makeRoom();
    this.#changed();
  }

  /** Deletes one record. */
  async delete(id) {
    await this.#remove(id);
    this.#changed();
  }

  /** Deletes all records. */
  async clear() {
    if (this.#database) await result(this.#images("readwrite").clear());
    this.#memory.clear();
    this.#changed();
  }

  #images(mode) {
    return this.#database.transaction(IMAGES, mode).objectStore(IMAGES);
  }

  async #remove(id) {
    if (this.#database) await result(this.#images("readwrite").delete(id));
    this.#memory.delete(id);
  }

  async #makeRoom() {
    const ids = this.#database ? await result(this.#images("readonly").getAllKeys()) : [...this.#memory.keys()];
    const surplus = ids.length - MOST_IMAGES;
    for (const id of ids.sort((a, b) => a - b).slice(0, Math.max(surplus, 0))) await this.#remove(id);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
    this.#others.postMessage("change");
  }
}
