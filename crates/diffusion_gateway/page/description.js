// What a model can do, from the description that it gives of itself.

/** The tasks, with the ends of the names of diffusers' pipelines that do them. The first one that fits counts. */
const TASKS = [
  { id: "depth", label: "Depth to image", image: true, pipeline: /Depth2ImgPipeline$/ },
  { id: "upscale", label: "Upscale", image: true, scales: 4, pipeline: /UpscalePipeline$/ },
  { id: "inpaint", label: "Inpaint", image: true, mask: true, pipeline: /InpaintPipeline$/ },
  { id: "image", label: "Image to image", image: true, pipeline: /Img2ImgPipeline$/ },
  { id: "text", label: "Text to image", pipeline: /Pipeline$/ },
];
/** The order in which they are shown. */
const ORDER = ["text", "image", "inpaint", "depth", "upscale"];

const integer = (minimum, maximum, standard) => ({ type: "integer", minimum, maximum, default: standard });
const number = (minimum, maximum, standard) => ({ type: "number", minimum, maximum, default: standard });
/** The defaults and limits of docs/usage.md, for a model that does not describe itself. */
const SHARED = {
  num_inference_steps: integer(1, 1000, 50),
  guidance_scale: number(0, 100, 7.5),
  num_images_per_prompt: integer(1, 8, 1),
  output_format: { type: "string", enum: ["png", "jpeg", "webp"], default: "png" },
  preview: { type: "string", enum: ["linear"] },
  prompt_syntax: { type: "string", enum: ["plain", "weighted"], default: "plain" },
};
const SIDE = { type: "integer", multipleOf: 8, default: 512 };
const SIZED = { ...SHARED, width: SIDE, height: SIDE };
const UNDESCRIBED = {
  pipelines: {
    StableDiffusionPipeline: { arguments: SIZED },
    StableDiffusionImg2ImgPipeline: { arguments: { ...SHARED, strength: number(0, 1, 0.8) } },
    StableDiffusionInpaintPipeline: { arguments: { ...SIZED, strength: number(0, 1, 1) } },
    StableDiffusionDepth2ImgPipeline: { arguments: { ...SHARED, strength: number(0, 1, 0.8) } },
    StableDiffusionUpscalePipeline: {
      arguments: {
        ...SHARED,
        num_inference_steps: integer(1, 1000, 75),
        guidance_scale: number(0, 100, 9),
        noise_level: integer(0, 350, 20),
      },
    },
  },
  max_pixels: 4_194_304,
  max_unet_batch_size: 16,
  loras: [],
  embeddings: [],
  decoupled: false,
};

/** A model with its tasks and limits. */
export class Model {
  /**
   * @param {string} name
   * @param {object|null} description the field `diffusion` of the gateway's answer
   */
  constructor(name, description) {
    const given = description ?? UNDESCRIBED;
    this.name = name;
    this.isDescribed = description !== null;
    this.tasks = tasksOf(given.pipelines ?? {});
    this.maxPixels = given.max_pixels ?? UNDESCRIBED.max_pixels;
    this.maxBatch = given.max_unet_batch_size ?? UNDESCRIBED.max_unet_batch_size;
    this.loras = given.loras ?? [];
    this.embeddings = given.embeddings ?? [];
    this.decoupled = given.decoupled ?? false;
  }

  /** Returns the task with this id; undefined if the model does not do it. */
  task(id) {
    return this.tasks.find((task) => task.id === id);
  }

  /** Returns the side of the images that the model makes by default. */
  get side() {
    const sides = this.tasks.map((task) => task.arguments.width?.default).filter(Boolean);
    return sides[0] ?? 512;
  }
}

function tasksOf(pipelines) {
  const found = new Map();
  for (const [name, { arguments: known = {} }] of Object.entries(pipelines)) {
    const task = TASKS.find(({ pipeline }) => pipeline.test(name));
    if (task && !found.has(task.id)) found.set(task.id, { ...task, arguments: known });
  }
  return ORDER.filter((id) => found.has(id)).map((id) => found.get(id));
}

/** Returns the name of the model of a first visit: one that makes images from texts, if there is one. */
export function firstChoice(models) {
  const all = [...models.values()];
  const best = all.find((model) => model.isDescribed && model.task("text")) ?? all.find((model) => model.task("text"));
  return (best ?? all[0])?.name;
}

/**
 * Returns what an image can be sent on to: for each task with an image the model that does it, the current one first.
 * @param {Map<string, Model>} models
 * @param {string} current the name of the model that is chosen
 */
export function destinations(models, current) {
  const names = [...models.keys()].sort((a, b) => (b === current) - (a === current));
  const found = new Map();
  for (const name of names) {
    for (const task of models.get(name).tasks) {
      if (task.image && !found.has(task.id)) found.set(task.id, { task: task.id, label: task.label, model: name });
    }
  }
  return ORDER.filter((id) => found.has(id)).map((id) => found.get(id));
}
