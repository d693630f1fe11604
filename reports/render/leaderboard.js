"use strict";
// without a prototype: a backbone may be called "constructor"
const content = JSON.parse(document.getElementById("content").textContent, (_, value) =>
  value instanceof Object && !Array.isArray(value) ? Object.setPrototypeOf(value, null) : value);
const byId = id => document.getElementById(id);
const make = (tag, text, attributes) => Object.assign(document.createElement(tag), { textContent: text ?? "" }, attributes);

const kinds = {};
content.groups.forEach((group, number) => {
  const [kind, name] = group.label.includes(": ") ? group.label.split(/: (.*)/) : ["", group.label];
  if (kind && !kinds[kind]) byId("group").append(kinds[kind] = make("optgroup", "", { label: kind }));
  (kind ? kinds[kind] : byId("group")).append(make("option", name, { value: number }));
});
// all tasks, unless they rank nobody: then what ranks most
const rankedBy = content.groups.map(group => Object.keys(group.places).length);
byId("group").value = rankedBy[0] ? 0 : rankedBy.indexOf(Math.max(...rankedBy));
for (const licence of [...new Set(content.backbones.map(b => b.licence))].filter(Boolean).sort())
  byId("licence").append(make("option", licence, { value: licence }));

const title = c => content.columns[c].title;
const millions = count => count ? `${(count / 1e6).toFixed(count < 1e5 ? 3 : count < 1e7 ? 1 : 0)} M` : "";

function show() {
  const group = content.groups[byId("group").value], single = group.ranked.length === 1;
  const text = byId("text").value.toLowerCase(), size = Number(byId("size").value), licence = byId("licence").value;
  const shown = content.backbones.filter(b =>
    [b.name, b.architecture, b.weights_source, b.source].join(" ").toLowerCase().includes(text)
    && (!size || (b.parameters && b.parameters <= size)) && (!licence || b.licence === licence)
    && group.columns.some(c => content.columns[c].cells[b.name]));
  const key = b => group.places[b.name]?.order ?? [Infinity, 0];
  const sign = single ? content.columns[group.ranked[0]].direction : 1;
  const score = b => sign * (group.places[b.name]?.value ?? -Infinity);
  shown.sort((a, b) => key(a)[0] - key(b)[0] || key(a)[1] - key(b)[1] || score(b) - score(a));
  byId("head").replaceChildren(heading(group, single));
  byId("rows").replaceChildren(...shown.map(b => row(b, group, single)));
  const ranked = Object.keys(group.places).length, single_seed = Object.values(group.places).filter(each => each.ofWeights).length;
  const singles = single_seed ? `${single_seed} of ${ranked} have one seed: their places, marked △, and others beside them are of these weights; the next training may differ. ` : "";
  byId("explain").textContent = `${shown.length} of ${content.backbones.length} backbones, ${ranked} ranked: those with a number in `
    + (single ? `${title(group.ranked[0])}. ` : `all ${group.ranked.length} tasks, by the mean of (number − median) / standard deviation. `)
    + (group.columns.length > group.ranked.length ? `Of a task with several protocols (A, B …) the one that most have counts: ${group.ranked.map(title).filter(name => / \([A-Z]\)/.test(name)).join(", ")}. ` : "")
    + `Place: from 1 + how many are better to how many are not worse; all places of all ${content.rankings} rankings of this page hold together at 95 %. ${singles}A number opens its protocol.`;
}

function sorter(text, small, first) {
  const head = make("th");
  head.append(make("button", text, { type: "button" }), make("small", small));
  head.firstChild.dataset.first = first;
  return head;
}

function heading(group, single) {
  const line = make("tr");
  line.append(...["Backbone", "Place", "Size"].map(text => sorter(text, "", "ascending")));
  if (!single) line.append(sorter("Score", "", "descending"));
  for (const c of group.columns) {
    const { title, metric, direction, unit, images } = content.columns[c];
    line.append(sorter(title, `${metric} ${direction > 0 ? "↑" : "↓"}${unit ? " " + unit : ""} · ${images} images`, direction > 0 ? "descending" : "ascending"));
  }
  return line;
}

// a cell, with what it is sorted by
function cell(value, ...parts) {
  const entry = make("td"), data = make("data", "", { value: value ?? "" });
  data.append(...parts);
  entry.append(data);
  return entry;
}

function row(backbone, group, single) {
  const standing = group.places[backbone.name], line = make("tr", "", { className: standing ? "" : "out" });
  const name = make("th", backbone.name, { scope: "row" });
  name.append(make("small", [backbone.architecture || backbone.weights_source, backbone.licence, backbone.source].filter(Boolean).join(" · ")));
  line.append(name, cell(standing?.order[0], standing ? standing.place + (standing.ofWeights ? " △" : "") : "–"), cell(backbone.parameters || "", millions(backbone.parameters)));
  if (!single) line.append(standing ? cell(standing.value, ...number(standing)) : cell("", "–"));
  for (const c of group.columns) {
    const own = content.columns[c].cells[backbone.name], button = make("button", "", { type: "button" });
    if (!own) { line.append(cell("", make("span", "–", { className: "missing" }))); continue; }
    button.append(...number(own));
    button.addEventListener("click", () => detail(backbone, c, own));
    line.append(cell(own.value, button));
  }
  return line;
}

const number = ({ text, interval }) => [make("span", text, { className: "num" }), make("span", interval, { className: "ci" })];

function detail(backbone, c, cell) {
  const column = content.columns[c], alone = content.groups.find(group => group.ranked.length === 1 && group.ranked[0] === c);
  byId("detail-title").textContent = `${backbone.name} · ${column.title}`;
  byId("detail-text").textContent = `${column.metric} ${cell.text} ${cell.interval}, place ${alone.places[backbone.name].place}, ${cell.seeds} seed${cell.seeds > 1 ? "s" : ""}, `
    + `${column.images} images, file ${cell.file}, shared: ${backbone.source}. Weights ${backbone.weights_source || "?"}, sha256 ${backbone.weights}.`;
  byId("detail-protocol").textContent = JSON.stringify(content.protocols[c], null, 2);
  byId("detail").showModal();
}

byId("close").addEventListener("click", () => byId("detail").close());
for (const id of ["group", "text", "size", "licence"]) byId(id).addEventListener("input", show);
show();
