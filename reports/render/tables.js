"use strict";
// The tables of a page. A heading sorts: one way, the other way, then in the original order. Wide tables fade at the edge while
// there is more to the right.
const Tables = (() => {
  const value = (row, column) => row.cells[column].querySelector("data")?.value ?? row.cells[column].textContent.trim();
  function compare(a, b, sign) {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;  // missing numbers stay last
    const x = Number(a), y = Number(b);
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y);
  }
  // by the heading that is selected; rows that are new have their original order
  function sort(table) {
    const heads = [...table.tHead.rows[0].cells], column = heads.findIndex(head => head.hasAttribute("aria-sort"));
    const body = table.tBodies[0], rows = [...body.rows];
    rows.forEach((row, number) => { row.original ??= number; });
    rows.sort((a, b) => a.original - b.original);
    const sign = heads[column]?.getAttribute("aria-sort") === "ascending" ? 1 : -1;
    if (column >= 0) rows.sort((a, b) => compare(value(a, column), value(b, column), sign));
    body.append(...rows);
  }
  function announce(text) { document.getElementById("live").textContent = text; }

  document.addEventListener("click", event => {
    const button = event.target.closest("table.sortable thead button");
    if (!button) return;
    const head = button.closest("th"), now = head.getAttribute("aria-sort");
    const first = button.dataset.first, second = first === "descending" ? "ascending" : "descending";
    const next = now === first ? second : now === second ? null : first;
    for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
    if (next) head.setAttribute("aria-sort", next);
    sort(button.closest("table"));
    announce(next ? `Sorted by ${button.textContent.trim()}, ${next}` : "In the original order");
  });

  for (const box of document.querySelectorAll(".scroll")) {
    const fade = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    box.addEventListener("scroll", fade, { passive: true });
    const observer = new ResizeObserver(fade);
    for (const each of [box, ...box.children]) observer.observe(each);
  }
  return { sort, announce };
})();
