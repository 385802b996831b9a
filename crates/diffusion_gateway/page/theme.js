// The theme that the user chose, before the page is painted. Without a choice, it is the system's.
{
  const chosen = localStorage.getItem("triton-diffusion.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
