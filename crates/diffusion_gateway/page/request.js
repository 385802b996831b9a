// The settings of the form as a request to the gateway.

/** Most images on the way that a request asks for. */
const MOST_PREVIEWS = 24;

/**
 * Makes a request.
 * @param {object} settings from form.js
 * @param {{image: Blob, mask: Blob|null}|null} input the input image
 * @returns {{path: string, body: BodyInit, headers: object}}
 */
export function request(settings, input) {
  const fields = {
    model: settings.model,
    prompt: settings.prompt,
    negative_prompt: settings.negative || null,
    n: settings.count,
    size: settings.width ? `${settings.width}x${settings.height}` : null,
    num_inference_steps: settings.steps,
    guidance_scale: settings.guidance,
    strength: settings.strength,
    noise_level: settings.noise,
    seed: settings.seed,
    scheduler: settings.scheduler || null,
    prompt_syntax: settings.syntax || null,
    keep_unmasked: settings.keep,
    output_format: settings.format,
    output_compression: settings.quality,
    loras: settings.loras.length > 0 ? settings.loras : null,
    stream: true,
    progress: true,
    partial_images: settings.preview ? Math.min(settings.steps, MOST_PREVIEWS) : 0,
    preview: settings.preview || null,
  };
  const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined);
  if (!input) {
    const headers = { "content-type": "application/json" };
    return { path: "v1/images/generations", body: JSON.stringify(Object.fromEntries(given)), headers };
  }
  const form = new FormData();
  for (const [name, value] of given) {
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  form.append("image", input.image, "image");
  if (input.mask) form.append("mask", input.mask, "mask.png");
  return { path: "v1/images/edits", body: form, headers: {} };
}

/** Returns a random seed of 32 bits. The page chooses it, so that it is known whatever becomes of the request. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Returns the bytes of a text in base64 as a blob. */
export function blobOf(base64, format) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  return new Blob([bytes], { type: `image/${format}` });
}
