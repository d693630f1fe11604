"use strict";
// Feature maps: the cosine of each part of all images with the selected one, for each backbone.
for (const box of document.querySelectorAll(".features")) {
  const images = Number(box.dataset.images), centred = document.getElementById("centred");
  const maps = [...box.querySelectorAll("canvas")].map(canvas => {
    const cells = new Int8Array(Uint8Array.from(atob(canvas.dataset.map), c => c.charCodeAt(0)).buffer);
    return { canvas, cells, scale: JSON.parse(canvas.dataset.scale), centre: JSON.parse(canvas.dataset.centre),
      height: canvas.height, width: canvas.width / images };
  });
  if (!maps.length) continue;
  const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];  // viridis
  const selected = { x: 0.5 / images, y: 0.5 };  // in the row of images

  // parts as unit vectors; with the mean feature they have one more number, its length outside of the components
  function units({ cells, scale, centre }) {
    const size = scale.length, result = [];
    for (let start = 0; start < cells.length; start += size) {
      const part = scale.map((unit, d) => cells[start + d] * unit + (centred.checked ? 0 : centre[d]));
      if (!centred.checked) part.push(centre[size]);
      const length = Math.hypot(...part) || 1;
      result.push(part.map(value => value / length));
    }
    return result;
  }
  function paint(map) {
    const { canvas, height, width } = map, parts = units(map);
    const column = Math.floor(selected.x * canvas.width), row = Math.floor(selected.y * height);
    const own = parts[(Math.floor(column / width) * height + row) * width + column % width];
    const context = canvas.getContext("2d"), picture = context.createImageData(canvas.width, height);
    parts.forEach((part, index) => {
      const cosine = part.reduce((sum, value, d) => sum + value * own[d], 0);
      const at = Math.min(Math.max(cosine, 0), 1) * (stops.length - 1), stop = Math.min(Math.floor(at), stops.length - 2);
      const image = Math.floor(index / (height * width)), y = Math.floor(index / width) % height, x = image * width + index % width;
      const colour = stops[stop].map((value, c) => value + (at - stop) * (stops[stop + 1][c] - value));
      picture.data.set([...colour, 255], 4 * (y * canvas.width + x));
    });
    context.putImageData(picture, 0, 0);
  }
  function select(x, y) {
    selected.x = Math.min(Math.max(x, 0), 1 - 1e-9); selected.y = Math.min(Math.max(y, 0), 1 - 1e-9);
    box.style.setProperty("--x", selected.x); box.style.setProperty("--y", selected.y);
    maps.forEach(paint);
    document.getElementById("live").textContent = `image ${Math.floor(selected.x * images) + 1}`;
  }
  box.addEventListener("click", event => {
    const strip = event.target.closest(".map")?.getBoundingClientRect();
    if (strip) select((event.clientX - strip.left) / strip.width, (event.clientY - strip.top) / strip.height);
  });
  box.addEventListener("keydown", event => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const { canvas } = maps[0], centre = (share, count) => Math.floor(share * count) + 0.5;
    select((centre(selected.x, canvas.width) + way[0]) / canvas.width, (centre(selected.y, canvas.height) + way[1]) / canvas.height);
  });
  centred.addEventListener("change", () => maps.forEach(paint));
  select(selected.x, selected.y);
}
