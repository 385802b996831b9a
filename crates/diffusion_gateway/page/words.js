// Numbers and names as people read them.

/** 1 image, 2 images. */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** Milliseconds as "0.8 s", "12 s" or "3 min 20 s". */
export function duration(milliseconds) {
  const seconds = milliseconds / 1000;
  if (seconds < 9.95) return `${Math.max(seconds, 0.1).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Width and height with a multiplication sign. */
export const size = (width, height) => `${width} × ${height}`;

/** DPMSolverMultistepScheduler as "DPM Solver Multistep". */
export function schedulerName(className) {
  return className
    .replace(/Scheduler$/, "")
    .replace(/([a-z])([A-Z])/g, "$1 $2")
    .replace(/^(DPM|UniPC|DEIS|KDPM2|LMS)(?=[A-Z])/, "$1 ");
}

/** The point in time in the user's words. */
export function time(milliseconds) {
  return new Date(milliseconds).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** The beginning of a text, at most `length` characters. */
export function shortened(text, length) {
  const letters = Array.from(text);
  return letters.length <= length ? text : `${letters.slice(0, length - 1).join("")}…`;
}
