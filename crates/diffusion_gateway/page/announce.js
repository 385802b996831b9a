// Words for screen readers, not more often than people can listen to.

import { byId } from "./dom.js";

/** Milliseconds between two announcements of progress. */
const PAUSE = 5000;
let last = 0;

/** Says a text now. */
export function say(text) {
  last = performance.now();
  byId("announce").textContent = text;
}

/** Says how far it is, unless something was said a moment ago. */
export function sayProgress(text) {
  if (performance.now() - last >= PAUSE) say(text);
}
