// The gateway's API. Paths are relative to the page, so the gateway may have a path of a proxy before it.

import { events } from "./sse.js";

const KEY = "triton-diffusion.key";

/** A request that failed, in the gateway's words. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** Returns the API key that this browser keeps; "" without one. */
export const apiKey = () => localStorage.getItem(KEY) ?? "";

/** Keeps the API key; "" removes it. */
export function keepApiKey(key) {
  if (key) localStorage.setItem(KEY, key);
  else localStorage.removeItem(KEY);
}

async function send(path, options = {}) {
  const headers = new Headers(options.headers);
  if (apiKey()) headers.set("authorization", `Bearer ${apiKey()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The gateway does not answer.");
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  throw failure(text, response.status);
}

function failure(text, status) {
  try {
    const { message, param } = JSON.parse(text).error;
    return new ApiError(message, { status, param });
  } catch {
    return new ApiError(`The gateway answered with status ${status}.`, { status });
  }
}

/** Returns the names of the models, sorted. */
export async function models() {
  const list = await (await send("v1/models")).json();
  return list.data.map((model) => model.id).sort((a, b) => a.localeCompare(b));
}

/** Returns the description of a model; null if it does not describe itself. */
export async function describe(model) {
  const one = await (await send(`v1/models/${encodeURIComponent(model)}`)).json();
  return one.diffusion ?? null;
}

/**
 * Sends a request for images.
 * @param {{path: string, body: BodyInit, headers: object}} request from request.js
 * @param {AbortSignal} signal closes the connection, which cancels the request
 * @yields the objects of the events
 */
export async function* generate(request, signal) {
  const { path, body, headers } = request;
  const response = await send(path, { method: "POST", body, headers, signal });
  try {
    for await (const { type, data } of events(response.body)) {
      const event = JSON.parse(data);
      if (type === "error") throw failure(data, 0);
      yield event;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection to the gateway broke before the image was complete.");
  }
}
