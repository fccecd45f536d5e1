"use strict";
// Sort a table by the column whose button is pressed; what has no value comes last. Pressed again, the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const keyOf = (cell, numeric) => {
    if (!numeric) return cell.textContent.trim();
    return cell.dataset.key === undefined ? NaN : Number(cell.dataset.key);
  };
  const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true});
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const numeric = head.classList.contains("number");
    const keyed = [...table.tBodies[0].rows].map(row => [keyOf(row.cells[column], numeric), row]);
    const known = keyed.filter(([key]) => !Number.isNaN(key));
    known.sort(([a], [b]) => falling ? compare(b, a) : compare(a, b));
    table.tBodies[0].append(...known.map(([, row]) => row), ...keyed.filter(([key]) => Number.isNaN(key)).map(([, row]) => row));
  }));
}
