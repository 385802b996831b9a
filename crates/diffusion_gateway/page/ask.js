// The two small dialogs: the API key, and a confirmation.

import { apiKey, keepApiKey } from "./api.js";
import { byId } from "./dom.js";

/** Asks for the API key. Resolves to whether there is a new one. */
export function askForKey(text) {
  const dialog = byId("key");
  if (dialog.open) return Promise.resolve(false);
  byId("key-text").textContent = text;
  byId("key-input").value = apiKey();
  dialog.returnValue = "";
  dialog.showModal();
  byId("key-input").select();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const isSaved = dialog.returnValue === "save";
        if (isSaved) keepApiKey(byId("key-input").value.trim());
        byId("key-input").value = "";
        resolve(isSaved);
      },
      { once: true },
    );
    byId("key-cancel").onclick = () => dialog.close("");
  });
}

/** Asks whether to delete something. */
export function confirmDeletion(title, text) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
