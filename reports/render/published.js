"use strict";
// ``content``, ``make`` and ``byId`` are those of leaderboard.js, which the page has before this
// published numbers: one task at a time; what is chosen is in the page's address
{
  const { sources, models, tasks, costs } = content.published;
  const family = ({ names }) => !names.length ? "not loaded here" : names[0].includes("/") ? names[0].split("/")[0] : "by name";

  const fill = (id, values) => values.forEach(([value, text]) => byId(id).append(make("option", text, { value })));
  const probes = {};
  tasks.forEach((task, number) => {
    const [data, probe] = task.task.split("/");
    if (!probes[probe]) byId("p-task").append(probes[probe] = make("optgroup", "", { label: probe }));
    probes[probe].append(make("option", `${data} · ${task.metric} (${task.rows.length})`, { value: number }));
  });
  const unique = values => [...new Set(values)].filter(Boolean).sort().map(value => [value, value]);
  fill("p-source", unique(sources.map(source => source.title.split(",")[0])));
  fill("p-family", unique(models.map(family)));
  fill("p-protocol", unique(sources.map(source => source.protocol)));
  fill("p-cost", costs.map((title, number) => [number, title]));
  fill("p-licence", unique(sources.map(source => source.licence)));

  const chosen = ["p-task", "p-source", "p-family", "p-protocol", "p-size", "p-licence", "p-cost", "p-text"];
  function restore() {
    const words = new URLSearchParams(location.hash.slice(1));
    for (const id of chosen.slice(1)) if (words.has(id)) byId(id).value = words.get(id);
    const task = tasks.findIndex(each => `${each.task} ${each.metric}` === words.get("p-task"));
    const ranked = new Set(content.columns.map(column => `${column.task} ${column.main}`));
    const first = Math.max(0, tasks.findIndex(each => ranked.has(`${each.task} ${each.metric}`)));
    byId("p-task").value = task < 0 ? first : task;
  }

  function remember() {
    const task = tasks[byId("p-task").value], words = new URLSearchParams({ "p-task": `${task.task} ${task.metric}` });
    for (const id of chosen.slice(1)) if (byId(id).value) words.set(id, byId(id).value);
    history.replaceState(null, "", `#${words}`);
  }

  function list() {
    const task = tasks[byId("p-task").value], text = byId("p-text").value.toLowerCase();
    const is = (id, value) => !byId(id).value || byId(id).value === value, size = Number(byId("p-size").value);
    const rows = task.rows.filter(([m, s]) => is("p-source", sources[s].title.split(",")[0]) && is("p-family", family(models[m]))
      && is("p-protocol", sources[s].protocol) && is("p-licence", sources[s].licence) && (!size || 1e6 * models[m].costs[0] <= size && models[m].costs[0]) && `${models[m].name} ${models[m].model} ${sources[s].protocol}`.toLowerCase().includes(text));
    rows.sort((a, b) => task.direction * (b[2] - a[2]));
    drawCosts(task, rows);
    byId("p-head").querySelectorAll("button")[1].dataset.first = task.direction > 0 ? "descending" : "ascending";
    byId("p-rows").replaceChildren(...rows.map(row => line(task, row)));
    Tables.sort(byId("p-table"));
    byId("p-explain").textContent = `${rows.length} numbers of ${task.task}, ${task.metric} ${task.direction > 0 ? "↑" : "↓"}.`;
    byId("p-more").hidden = rows.length <= 100 || byId("p-rows").className === "all";
  }

  function drawCosts(task, rows) {
    const number = Number(byId("p-cost").value), columns = content.columns.filter(c => c.task === task.task && c.main === task.metric);
    const points = rows.map(([m, s, value]) => [models[m].costs[number], Number(value), `${models[m].name}: ${value}<br>${sources[s].title}`]);
    const own = columns.flatMap(column => content.backbones.filter(b => column.cells[b.name])
      .map(b => [b.costs[number], column.cells[b.name].value, `${b.name}: ${column.cells[b.name].text} ${column.cells[b.name].interval}`]));
    const trace = (name, color, points) => ({ type: "scatter", mode: "markers", name, x: points.map(p => p[0]), y: points.map(p => p[1]), text: points.map(p => p[2]),
      marker: { color, size: 7, opacity: .7 }, hovertemplate: "%{text}<br>%{x:.4~g}<extra></extra>" });
    const traces = [trace("published", "var:muted", points.filter(p => p[0])), trace("shared results", "var:accent", own.filter(p => p[0]))].filter(t => t.x.length);
    const note = { text: "No costs are known of these models.", showarrow: false, xref: "paper", yref: "paper", x: .5, y: .5 };
    Figures.fill("published-costs", traces, { xaxis: { type: "log", title: { text: `${costs[number]}, log` } },
      yaxis: { title: { text: `${task.task}: ${task.metric}${task.direction > 0 ? "" : ", lower is better"}` } }, annotations: traces.length ? [] : [note] });
  }

  function line(task, [m, s, value]) {
    const model = models[m], source = sources[s], row = make("tr"), name = make("th", model.name, { scope: "row" });
    if (![model.name, ...model.names].includes(model.model.split("@")[0])) name.append(make("small", model.model));
    const entry = make("td"), button = make("button", value, { type: "button" });
    button.addEventListener("click", () => explain(task, model, source, value));
    entry.append(button);
    row.append(name, entry, make("td", source.title), make("td", source.licence));
    return row;
  }

  function explain(task, model, source, value) {
    byId("detail-title").textContent = `${model.name} · ${task.task} · published`;
    byId("detail-text").textContent = `${task.metric} ${value}, called ${model.model} in its source: `;
    byId("detail-text").append(make("a", source.title, { href: source.url, rel: "noopener" }));
    const lines = [["protocol", source.protocol], ["preset here", source.preset || "none"], ["differs", source.differs], ["commit", source.commit],
      ["licence", source.licence], ["left out of this source", source.left_out],
      [`costs at ${model.at} px`, costs.map((title, number) => model.costs[number] && `${title} ${model.costs[number]}`).filter(Boolean).join("; ")], ["names here", model.names.join(", ")]];
    byId("detail-protocol").textContent = lines.filter(([, text]) => text).map(each => each.join(": ")).join("\n");
    byId("detail").showModal();
  }

  for (const id of chosen) byId(id).addEventListener("input", () => { byId("p-rows").className = ""; remember(); list(); });
  byId("p-more").addEventListener("click", () => { byId("p-rows").className = "all"; byId("p-more").hidden = true; });
  byId("p-link").addEventListener("click", async () => {
    remember();
    await navigator.clipboard.writeText(location.href);
    byId("p-link").textContent = "Copied";
  });
  restore();
  list();
}
