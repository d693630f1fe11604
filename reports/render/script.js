"use strict";
(() => {
  const root = document.documentElement;
  const $ = (query, from = document) => from.querySelector(query);
  const $$ = (query, from = document) => [...from.querySelectorAll(query)];

  // ---- light and dark: the system's theme until the reader selects one
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const themeButton = $("#theme");
  const nameTheme = () => { themeButton.textContent = dark() ? "Light" : "Dark"; themeButton.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
  try { const stored = localStorage.getItem("report-theme"); if (stored) root.dataset.theme = stored; } catch { /* file:// may forbid it */ }
  nameTheme();
  themeButton.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("report-theme", root.dataset.theme); } catch { /* not stored */ }
    nameTheme(); repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nameTheme(); repaint(); });

  // ---- tables: sort by a heading
  for (const table of $$("table.sortable")) {
    const heads = $$("thead th", table), body = table.tBodies[0];
    const original = [...body.rows];
    heads.forEach((head, column) => {
      const button = $("button", head);
      if (!button) return;
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = button.dataset.first, second = first === "descending" ? "ascending" : "descending";
        const next = now === first ? second : now === second ? null : first;
        heads.forEach(h => h.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const value = row => $("data", row.cells[column])?.value ?? row.cells[column].textContent.trim();
        const rows = next ? [...original].sort((a, b) => compare(value(a), value(b), next === "ascending" ? 1 : -1)) : original;
        body.append(...rows);
        announce(next ? `Sorted by ${button.textContent.trim()}, ${next}` : "In the original order");
      });
    });
  }
  function compare(a, b, sign) {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;  // missing numbers stay last
    const x = Number(a), y = Number(b);
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y);
  }
  const live = $("#live");
  function announce(text) { live.textContent = text; }

  // ---- wide tables fade at the edge while there is more to the right
  for (const box of $$(".scroll")) {
    const fade = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    box.addEventListener("scroll", fade, { passive: true });
    new ResizeObserver(fade).observe(box);
  }

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
    announce(`${shown} rows shown`);
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

  // ---- figures: Plotly is unpacked once; visible figures are drawn first, the others when the browser is idle
  const specs = JSON.parse($("#figure-data").textContent);
  const colour = name => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  // the colours of backbones suit a light page; on a dark one the deep ones are lighter
  const lighter = { "#0072B2": "#56A8DC", "#D55E00": "#F08A4B", "#009E73": "#3CC79B", "#8C6BB1": "#B79BD6", "#A6761D": "#D1A34F",
    "#666A2E": "#A9AD5E", "#C0392B": "#EF7F74" };
  const resolved = value => typeof value === "string" && value.startsWith("var:") ? colour(value.slice(4))
    : typeof value === "string" ? (dark() && lighter[value]) || value
    : Array.isArray(value) ? value.map(resolved)
    : value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolved(v)])) : value;
  function styled(layout) {
    const axis = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true, fixedrange: true };
    const result = { font: { family: "system-ui, sans-serif", size: 12, color: colour("text") }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") } },
      ...resolved(layout) };
    for (const key of ["xaxis", "yaxis"]) result[key] = { ...axis, ...result[key], tickfont: { color: colour("muted") } };
    return result;
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
  async function draw(plot) {
    if (drawn.has(plot)) return;
    drawn.add(plot);
    const spec = specs[plot.dataset.figure];
    try {
      const Plotly = await library();
      await Plotly.newPlot(plot, resolved(spec.data), styled(spec.layout), { displayModeBar: false, responsive: true });
    } catch (error) {
      plot.textContent = "This browser cannot draw the figure; its numbers are in the tables.";
      console.warn(error);
    }
  }
  async function repaint() {
    const Plotly = plotly && await plotly;
    for (const plot of drawn) { const spec = specs[plot.dataset.figure]; Plotly.react(plot, resolved(spec.data), styled(spec.layout)); }
  }
  const plots = $$(".plot");
  const visible = new IntersectionObserver(entries => entries.forEach(entry => { if (entry.isIntersecting) { visible.unobserve(entry.target); draw(entry.target); } }), { rootMargin: "400px" });
  plots.forEach(plot => visible.observe(plot));
  const idle = window.requestIdleCallback ?? (work => setTimeout(work, 50));
  const drawRest = async () => {
    const next = plots.find(plot => !drawn.has(plot));
    if (next) { visible.unobserve(next); await draw(next); idle(drawRest); } else root.dataset.figures = "drawn";
  };
  addEventListener("load", () => idle(drawRest));

  // ---- a figure as SVG, always in the light theme, with its legend
  async function save(button) {
    const plot = $(".plot", button.closest("figure")), spec = specs[plot.dataset.figure], theme = root.dataset.theme;
    const Plotly = await library();
    root.dataset.theme = "light";
    const figure = { data: resolved(spec.data), layout: { ...styled(spec.layout), paper_bgcolor: "#fff", showlegend: spec.data.length > 1 } };
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    await Plotly.downloadImage(figure, { format: "svg", filename: button.dataset.name, width: plot.clientWidth, height: plot.clientHeight });
  }
  $$("button.svg").forEach(button => button.addEventListener("click", () => save(button)));
  $$("details").forEach(element => element.addEventListener("toggle", () => $$(".plot", element).forEach(plot => window.Plotly && drawn.has(plot) && window.Plotly.Plots.resize(plot))));
  const print = $("#print");
  if (print) print.addEventListener("click", async () => { await Promise.all(plots.map(draw)); window.print(); });
})();
