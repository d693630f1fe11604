"use strict";
(() => {
  const root = document.documentElement;
  const $ = (query, from = document) => from.querySelector(query);
  const $$ = (query, from = document) => [...from.querySelectorAll(query)];

  // ---- light and dark: the system's theme until the reader selects one
  const { dark } = Figures;
  const themeButton = $("#theme");
  const nameTheme = () => { themeButton.textContent = dark() ? "Light" : "Dark"; themeButton.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
  try { const stored = localStorage.getItem("report-theme"); if (stored) root.dataset.theme = stored; } catch { /* file:// may forbid it */ }
  nameTheme();
  themeButton.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("report-theme", root.dataset.theme); } catch { /* not stored */ }
    nameTheme(); Figures.repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nameTheme(); Figures.repaint(); });

  // ---- filter of the overview
  const search = $("#find"), kind = $("#kind"), decided = $("#decided");
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of $$("#t-overview tbody tr")) {
      const about = $("[data-text]", row).dataset;
      const matches = words.every(word => about.text.includes(word)) && (!kind?.value || about.kind === kind.value)
        && (!decided.checked || about.decided === "yes");
      row.hidden = !matches; shown += matches;
    }
    $("#none").hidden = shown > 0;
    Tables.announce(`${shown} rows shown`);
  }
  if (search) {
    search.addEventListener("input", filter); kind?.addEventListener("change", filter); decided.addEventListener("change", filter);
    search.addEventListener("keydown", event => { if (event.key === "Escape") { search.value = ""; filter(); } });
    addEventListener("keydown", event => {
      if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); search.focus(); }
    });
  }

  // ---- gallery: a picture in full size, the next ones with the arrow keys
  const box = $("#lightbox");
  if (box) {
    const tiles = $$(".strip button"), picture = $("img", box), text = $("#light-text");
    let current = 0;
    const show = to => {
      current = (to + tiles.length) % tiles.length;
      const image = $("img", tiles[current]);
      picture.src = image.src; picture.alt = image.alt; text.textContent = image.alt;
      picture.style.imageRendering = tiles[current].closest(".flat") ? "pixelated" : "auto";
    };
    tiles.forEach((tile, number) => tile.addEventListener("click", () => { show(number); box.showModal(); }));
    $("#light-before").addEventListener("click", () => show(current - 1));
    $("#light-after").addEventListener("click", () => show(current + 1));
    $("#light-close").addEventListener("click", () => box.close());
    box.addEventListener("keydown", event => {
      if (event.key === "ArrowLeft") show(current - 1);
      if (event.key === "ArrowRight") show(current + 1);
    });
    box.addEventListener("click", event => { if (event.target === box) box.close(); });
    box.addEventListener("close", () => tiles[current].focus());
  }

  const print = $("#print");
  if (print) print.addEventListener("click", async () => { await Figures.drawAll(); window.print(); });
})();
