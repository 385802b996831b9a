// The switch for light and dark.

const KEY = "triton-diffusion.theme";

/** Connects the radio buttons of the theme. */
export function connectThemeSwitch() {
  const chosen = localStorage.getItem(KEY) ?? "auto";
  for (const radio of document.querySelectorAll("input[name=theme]")) {
    radio.checked = radio.value === chosen;
    radio.addEventListener("change", () => {
      if (radio.value === "auto") {
        localStorage.removeItem(KEY);
        delete document.documentElement.dataset.theme;
      } else {
        localStorage.setItem(KEY, radio.value);
        document.documentElement.dataset.theme = radio.value;
      }
    });
  }
}
