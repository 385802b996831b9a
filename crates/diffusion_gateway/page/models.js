// The models of the gateway, with their descriptions.

import { describe, models as names } from "./api.js";
import { Model } from "./description.js";

/** Requests for descriptions at a time. */
const AT_A_TIME = 6;
/** Milliseconds after which the page shows itself with the descriptions that it has. */
const PATIENCE = 2500;

/**
 * Returns the models by their names. One whose description takes long has the usual limits until `late` gets it.
 * @param {string} first the model whose description is asked for first
 * @param {(model: Model) => void} late
 */
export async function loadModels(first, late) {
  const all = await names();
  const models = new Map(all.map((name) => [name, new Model(name, null)]));
  const waiting = [...all].sort((a, b) => (b === first) - (a === first));
  let isShown = false;
  const worker = async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      const description = await describe(name).catch(() => null);
      const model = new Model(name, description);
      if (isShown) late(model);
      else models.set(name, model);
    }
  };
  const workers = Promise.all(Array.from({ length: AT_A_TIME }, worker));
  await Promise.race([workers, new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
  isShown = true;
  return models;
}
