"use strict";
(() => {
  const root = document.documentElement;
  const $ = (query, from = document) => from.querySelector(query);
  const $$ = (query, from = document) => [...from.querySelectorAll(query)];

  // ---- light and dark: what the system says until the reader chooses
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const themeButton = $("#theme");
  const nameTheme = () => { themeButton.textContent = dark() ? "Light" : "Dark"; themeButton.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
  try { const kept = localStorage.getItem("report-theme"); if (kept) root.dataset.theme = kept; } catch { /* file:// may forbid it */ }
  nameTheme();
  themeButton.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("report-theme", root.dataset.theme); } catch { /* not kept */ }
    nameTheme(); repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nameTheme(); repaint(); });

  // ---- tables: sort by a heading
  for (const table of $$("table.sortable")) {
    const heads = $$("thead th", table), body = table.tBodies[0];
    const original = [...body.rows];
    heads.forEach((head, place) => {
      const button = $("button", head);
      if (!button) return;
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.dataset.first || "descending", other = first === "descending" ? "ascending" : "descending";
        const next = now === first ? other : now === other ? null : first;
        heads.forEach(h => h.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const value = row => row.cells[place].dataset.value ?? row.cells[place].textContent.trim();
        const rows = next ? [...original].sort((a, b) => compare(value(a), value(b), next === "ascending" ? 1 : -1)) : original;
        body.append(...rows);
        say(next ? `Sorted by ${button.textContent.trim()}, ${next}` : "In the original order");
      });
    });
  }
  function compare(a, b, way) {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;  // missing numbers stay last
    const x = Number(a), y = Number(b);
    return way * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y);
  }
  const live = $("#live");
  function say(text) { live.textContent = text; }

  // ---- filter of the overview
  const find = $("#find"), kind = $("#kind"), decided = $("#decided");
  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of $$("#t-overview tbody tr")) {
      const fits = words.every(word => row.dataset.text.includes(word)) && (!kind?.value || row.dataset.kind === kind.value)
        && (!decided.checked || row.dataset.decided === "yes");
      row.hidden = !fits; shown += fits;
    }
    $("#none").hidden = shown > 0;
    say(`${shown} rows shown`);
  }
  if (find) {
    find.addEventListener("input", filter); kind?.addEventListener("change", filter); decided.addEventListener("change", filter);
    find.addEventListener("keydown", event => { if (event.key === "Escape") { find.value = ""; filter(); } });
    addEventListener("keydown", event => {
      if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); find.focus(); }
    });
  }

  // ---- gallery: look at one picture, walk with the arrow keys
  const box = $("#lightbox");
  if (box) {
    const tiles = $$(".strip button"), picture = $("img", box), text = $("#light-text");
    let place = 0;
    const show = to => {
      place = (to + tiles.length) % tiles.length;
      const image = $("img", tiles[place]);
      picture.src = image.src; picture.alt = image.alt; text.textContent = image.alt;
      picture.style.imageRendering = tiles[place].closest(".flat") ? "pixelated" : "auto";
    };
    tiles.forEach((tile, number) => tile.addEventListener("click", () => { show(number); box.showModal(); }));
    $("#light-before").addEventListener("click", () => show(place - 1));
    $("#light-after").addEventListener("click", () => show(place + 1));
    $("#light-close").addEventListener("click", () => box.close());
    box.addEventListener("keydown", event => {
      if (event.key === "ArrowLeft") show(place - 1);
      if (event.key === "ArrowRight") show(place + 1);
    });
    box.addEventListener("click", event => { if (event.target === box) box.close(); });
    box.addEventListener("close", () => tiles[place].focus());
  }

  // ---- figures: Plotly is unpacked once; what is near is drawn first, the rest when the browser has nothing else to do
  const specs = JSON.parse($("#figure-data").textContent);
  const colour = name => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  // the colours of backbones are chosen for white paper; on dark paper the deep ones get their light twins
  const twins = { "#0072B2": "#56A8DC", "#D55E00": "#F08A4B", "#009E73": "#3CC79B", "#8C6BB1": "#B79BD6", "#A6761D": "#D1A34F",
    "#666A2E": "#A9AD5E", "#C0392B": "#EF7F74", "#4C86B8": "#78ADD9" };
  const filled = value => typeof value === "string" && value.startsWith("var:") ? colour(value.slice(4))
    : typeof value === "string" ? (dark() && twins[value]) || value
    : Array.isArray(value) ? value.map(filled)
    : value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, filled(v)])) : value;
  function dressed(layout) {
    const axis = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true, fixedrange: true };
    const made = { font: { family: "system-ui, sans-serif", size: 12, color: colour("text") }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") } },
      ...filled(layout) };
    for (const key of ["xaxis", "yaxis"]) made[key] = { ...axis, ...made[key], tickfont: { color: colour("muted") } };
    return made;
  }
  let plotly = null;
  function library() {
    plotly ??= (async () => {
      const packed = Uint8Array.from(atob($("#plotly").textContent.trim()), c => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(stream).text();
      document.head.append(script);
      return window.Plotly;
    })();
    return plotly;
  }
  const drawn = new Set();
  async function draw(place) {
    if (drawn.has(place)) return;
    drawn.add(place);
    const spec = specs[place.dataset.figure];
    try {
      const Plotly = await library();
      await Plotly.newPlot(place, filled(spec.data), dressed(spec.layout), { displayModeBar: false, responsive: true });
    } catch (error) {
      place.textContent = "This browser cannot draw the figure; its numbers are in the tables.";
      console.warn(error);
    }
  }
  async function repaint() {
    const Plotly = plotly && await plotly;
    for (const place of drawn) { const spec = specs[place.dataset.figure]; Plotly.react(place, filled(spec.data), dressed(spec.layout)); }
  }
  const places = $$(".plot");
  const near = new IntersectionObserver(seen => seen.forEach(one => { if (one.isIntersecting) { near.unobserve(one.target); draw(one.target); } }), { rootMargin: "400px" });
  places.forEach(place => near.observe(place));
  const idle = window.requestIdleCallback ?? (work => setTimeout(work, 50));
  const drawRest = async () => {
    const next = places.find(place => !drawn.has(place));
    if (next) { near.unobserve(next); await draw(next); idle(drawRest); } else root.dataset.figures = "drawn";
  };
  addEventListener("load", () => idle(drawRest));

  // ---- a figure as SVG, always in the colours for white paper, with its legend
  async function save(button) {
    const place = $(".plot", button.closest("figure")), spec = specs[place.dataset.figure], chosen = root.dataset.theme;
    const Plotly = await library();
    root.dataset.theme = "light";
    const figure = { data: filled(spec.data), layout: { ...dressed(spec.layout), paper_bgcolor: "#fff", showlegend: spec.data.length > 1 } };
    if (chosen) root.dataset.theme = chosen; else delete root.dataset.theme;
    await Plotly.downloadImage(figure, { format: "svg", filename: button.dataset.name, width: place.clientWidth, height: place.clientHeight });
  }
  $$("button.svg").forEach(button => button.addEventListener("click", () => save(button)));
  $$("details").forEach(one => one.addEventListener("toggle", () => $$(".plot", one).forEach(place => window.Plotly && drawn.has(place) && window.Plotly.Plots.resize(place))));
  const print = $("#print");
  if (print) print.addEventListener("click", async () => { await Promise.all(places.map(draw)); window.print(); });
})();
