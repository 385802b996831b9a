// A mask as a list of strokes, so that each can be undone.

/** The longest side of a mask is between these. The server scales it to the size of the image. */
const [SHORTEST, LONGEST] = [512, 1024];
/** The color of what is painted. The mask's file has its transparency only. */
const PAINT = "#000";

/** What is repainted. Coordinates and brush sizes are parts of the width, from 0 to 1. */
export class Mask {
  #strokes = [];

  /** @param {{width: number, height: number}} size the size of the image */
  constructor({ width, height }) {
    const longest = Math.max(width, height);
    const factor = Math.min(Math.max(longest, SHORTEST), LONGEST) / longest;
    this.width = Math.max(Math.round(width * factor), 1);
    this.height = Math.max(Math.round(height * factor), 1);
    this.canvas = new OffscreenCanvas(this.width, this.height);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
  }

  /** Returns a copy with the same strokes. */
  copy() {
    const copied = new Mask(this);
    copied.#strokes = [...this.#strokes];
    copied.#drawAll();
    return copied;
  }

  /** Whether there is something to undo. */
  get canUndo() {
    return this.#strokes.length > 0;
  }

  /**
   * Adds a stroke: {kind: "brush" | "erase", size, points}, {kind: "rectangle", left, top, width, height},
   * {kind: "all" | "clear" | "invert"} or {kind: "image", image}.
   */
  add(stroke) {
    this.#strokes.push(stroke);
    this.#draw(stroke);
  }

  /** Continues the last stroke to a point. */
  extend(point) {
    const stroke = this.#strokes.at(-1);
    stroke.points.push(point);
    this.#draw({ ...stroke, points: stroke.points.slice(-2) });
  }

  /** Removes the last stroke. */
  undo() {
    this.#strokes.pop();
    this.#drawAll();
  }

  /** Returns the painted part of the image, from 0 to 1. */
  coverage() {
    const { data } = this.context.getImageData(0, 0, this.width, this.height);
    let painted = 0;
    for (let index = 3; index < data.length; index += 4) painted += data[index] > 127;
    return painted / (this.width * this.height);
  }

  /** Returns the mask as OpenAI's API wants it: a PNG that is transparent where the image is repainted. */
  async file() {
    const canvas = new OffscreenCanvas(this.width, this.height);
    const context = canvas.getContext("2d");
    context.fillRect(0, 0, this.width, this.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(this.canvas, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  #drawAll() {
    this.context.clearRect(0, 0, this.width, this.height);
    for (const stroke of this.#strokes) this.#draw(stroke);
  }

  #draw(stroke) {
    const { context, width, height } = this;
    context.save();
    context.fillStyle = context.strokeStyle = PAINT;
    if (stroke.kind === "brush" || stroke.kind === "erase") {
      if (stroke.kind === "erase") context.globalCompositeOperation = "destination-out";
      drawLine(context, stroke.points, stroke.size, width);
    } else if (stroke.kind === "rectangle") {
      context.fillRect(stroke.left * width, stroke.top * height, stroke.width * width, stroke.height * height);
    } else if (stroke.kind === "invert") {
      context.globalCompositeOperation = "xor";
      context.fillRect(0, 0, width, height);
    } else if (stroke.kind === "image") {
      context.drawImage(stroke.image, 0, 0, width, height);
    } else {
      context.clearRect(0, 0, width, height);
      if (stroke.kind === "all") context.fillRect(0, 0, width, height);
    }
    context.restore();
  }
}

/** Makes a mask from its file, for an image of this size. */
export async function maskOfFile(file, size) {
  const image = await createImageBitmap(file);
  const mask = new Mask(size);
  mask.add({ kind: "image", image });
  mask.add({ kind: "invert" });
  return mask;
}

function drawLine(context, points, size, width) {
  const [first, ...others] = points;
  context.lineWidth = Math.max(size * width, 1);
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  // A line to the same place draws nothing.
  context.arc(first.x * width, first.y * width, context.lineWidth / 2, 0, 2 * Math.PI);
  context.fill();
  context.beginPath();
  context.moveTo(first.x * width, first.y * width);
  for (const { x, y } of others) context.lineTo(x * width, y * width);
  context.stroke();
}
