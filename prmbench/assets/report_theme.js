"use strict";
// Light or dark before anything is drawn: as chosen on an earlier visit, else as the system says.
(() => {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = window.localStorage.getItem("prmbench-theme"); } catch { /* storage is off: nothing is remembered */ }
  const apply = () => { document.documentElement.dataset.theme = chosen || (system.matches ? "dark" : "light"); };
  system.addEventListener("change", apply);
  // Choosing what the system says anyway is to follow it again.
  document.addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest("#theme")) return;
    const wanted = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    chosen = wanted === (system.matches ? "dark" : "light") ? null : wanted;
    try {
      if (chosen) window.localStorage.setItem("prmbench-theme", chosen);
      else window.localStorage.removeItem("prmbench-theme");
    } catch { /* storage is off: the choice holds for this visit */ }
    apply();
  });
  window.addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; });
  window.addEventListener("afterprint", apply);
  apply();
})();
