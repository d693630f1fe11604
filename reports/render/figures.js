"use strict";
// The figures of a page. Plotly is unpacked once; visible figures are drawn first, the others when the browser is idle.
const Figures = (() => {
  const root = document.documentElement;
  const $ = (query, from = document) => from.querySelector(query);
  const $$ = (query, from = document) => [...from.querySelectorAll(query)];

  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const specs = JSON.parse($("#figure-data").textContent);
  // of a figure with menus, the traces and axes that its reader selects
  function specOf(plot) {
    const spec = specs[plot.dataset.figure], choices = spec.choices;
    if (!choices) return spec;
    const selected = axis => ($(`[data-axis=${axis}]`, plot.closest("figure")) ?? $(`[data-axis=${axis}]`)).value;
    const x = choices.x[selected("x")], y = choices.y[selected("y")];
    const opacity = choices.opacity?.[selected("y")][selected("x")], note = choices.notes?.[selected("y")][selected("x")];
    // without a legend, those that are not pale have their names
    const more = (trace, i) => ({ opacity: opacity?.[i] ?? 1,
      ...(spec.layout.showlegend || opacity?.[i] < 1 ? {} : { mode: "markers+text", texttemplate: trace.name, textposition: "top center" }) });
    // a trace without a number must not widen the axis of costs
    const data = i => y.data[i].y[0] === null ? { ...x.data[i], x: [null] } : x.data[i];
    return { data: spec.data.map((trace, i) => ({ ...trace, ...y.data[i], ...data(i), ...more(trace, i) })),
      layout: { ...spec.layout, ...y.layout, ...x.layout, ...note } };
  }
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
    try {
      const Plotly = await library(), spec = specOf(plot);
      await Plotly.newPlot(plot, resolved(spec.data), styled(spec.layout), { displayModeBar: false, responsive: true });
    } catch (error) {
      plot.textContent = "This browser cannot draw the figure; its numbers are in the tables.";
      console.warn(error);
    }
  }
  async function repaint() {
    const Plotly = plotly && await plotly;
    for (const plot of drawn) { const spec = specOf(plot); Plotly.react(plot, resolved(spec.data), styled(spec.layout)); }
  }
  // a figure whose points and axes the page selects
  function fill(id, data, axes) {
    specs[id] = { data, layout: { ...specs[id].layout, ...axes } };
    return repaint();
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
    const plot = $(".plot", button.closest("figure")), spec = specOf(plot), theme = root.dataset.theme;
    const Plotly = await library();
    root.dataset.theme = "light";
    const figure = { data: resolved(spec.data), layout: { ...styled(spec.layout), paper_bgcolor: "#fff", showlegend: spec.data.length > 1 } };
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    await Plotly.downloadImage(figure, { format: "svg", filename: button.dataset.name, width: plot.clientWidth, height: plot.clientHeight });
  }
  $$("button.svg").forEach(button => button.addEventListener("click", () => save(button)));
  $$("details").forEach(element => element.addEventListener("toggle", () => $$(".plot", element).forEach(plot => window.Plotly && drawn.has(plot) && window.Plotly.Plots.resize(plot))));
  $$("[data-axis]").forEach(menu => menu.addEventListener("input", repaint));
  let shownTheme;  // on paper figures are light
  addEventListener("beforeprint", () => { shownTheme = root.dataset.theme; root.dataset.theme = "light"; repaint(); });
  addEventListener("afterprint", () => { if (shownTheme) root.dataset.theme = shownTheme; else delete root.dataset.theme; repaint(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  return { dark, repaint, fill, drawAll: () => Promise.all(plots.map(draw)) };
})();
