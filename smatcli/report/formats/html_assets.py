"""Style and script of the HTML report. Plain JavaScript, nothing is fetched."""

CSS = """
:root { --ink: #1d2430; --soft: #5c6675; --line: #d8dde4; --wash: #f4f6f8; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.5rem 4rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .3rem; }
nav { columns: 16rem; font-size: .9rem; margin: 1rem 0; } nav a { display: block; color: var(--mark); text-decoration: none; }
.caption, figcaption, .soft { color: var(--soft); font-size: .88rem; max-width: 62rem; }
.notes { font-size: .85rem; margin: .3rem 0; padding-left: 1.2rem; }
.warnings { background: #fff6e5; border-left: 4px solid #e69f00; padding: .4rem 1rem; margin: 1rem 0; }
.warnings ul, .summary ul { margin: .3rem 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .3rem 0; }
th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; max-width: 30rem; }
thead th { background: var(--wash); vertical-align: bottom; } thead tr.families th { text-align: center; font-weight: 600; }
thead button { all: unset; cursor: pointer; font-weight: 600; } thead button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort=ascending] button::after { content: " \\25B2"; } th[aria-sort=descending] button::after { content: " \\25BC"; }
tr.block th { text-align: left; background: #fff; font-style: italic; padding-top: .7rem; }
tr.average td { background: var(--wash); font-style: italic; }
td b { color: #000; }
input.filter { font: inherit; font-size: .85rem; padding: .15rem .5rem; border: 1px solid var(--line); border-radius: 4px; }
figure { margin: 1.2rem 0 2rem; } figure img { max-width: 100%; height: auto; display: block; }
details { margin: .4rem 0; } summary { cursor: pointer; }
pre { background: var(--wash); padding: .6rem; overflow-x: auto; font-size: .8rem; }
[hidden] { display: none !important; }
@media print { input.filter, nav { display: none; } h2, h3 { break-after: avoid; } figure, table { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
(function () {
  function key(cell) {
    var given = cell.getAttribute("data-value");
    if (given === null) { var text = cell.textContent.trim(); return text === "" || text === "--" ? null : text; }
    return given === "" ? null : Number(given);
  }
  function compare(a, b) {
    if (a === b) return 0;
    if (a === null) return 1;
    if (b === null) return -1;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }
  function sort(table, column, direction) {
    Array.prototype.forEach.call(table.tBodies, function (body) {
      var rows = Array.prototype.slice.call(body.rows);
      var free = rows.filter(function (r) { return r.className === ""; });
      free.sort(function (r, s) {
        if (direction === "none") return r.dataset.place - s.dataset.place;
        var a = key(r.cells[column]), b = key(s.cells[column]);
        var order = a === null || b === null ? compare(a, b) : compare(a, b) * (direction === "descending" ? -1 : 1);
        return order || r.dataset.place - s.dataset.place;
      });
      var fixed = rows.filter(function (r) { return r.className !== ""; });
      fixed.filter(function (r) { return r.className === "block"; }).concat(free)
        .concat(fixed.filter(function (r) { return r.className !== "block"; }))
        .forEach(function (r) { body.appendChild(r); });
    });
  }
  function filter(table, words) {
    Array.prototype.forEach.call(table.tBodies, function (body) {
      var shown = 0;
      Array.prototype.forEach.call(body.rows, function (row) {
        if (row.className !== "") return;
        var text = row.textContent.toLowerCase();
        row.hidden = !words.every(function (word) { return text.indexOf(word) >= 0; });
        if (!row.hidden) shown += 1;
      });
      Array.prototype.forEach.call(body.rows, function (row) {
        if (row.className === "block") row.hidden = shown === 0;
        if (row.className === "average") row.hidden = words.length > 0;
      });
    });
  }
  Array.prototype.forEach.call(document.querySelectorAll("table.data"), function (table) {
    Array.prototype.forEach.call(table.tBodies, function (body) {
      Array.prototype.forEach.call(body.rows, function (row, i) { row.dataset.place = i; });
    });
    var heads = table.querySelectorAll("thead tr.heads th");
    Array.prototype.forEach.call(heads, function (head, column) {
      head.querySelector("button").addEventListener("click", function () {
        var first = head.dataset.first || "descending", second = first === "descending" ? "ascending" : "descending";
        var now = head.getAttribute("aria-sort") || "none";
        var next = now === "none" ? first : now === first ? second : "none";
        Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
        if (next !== "none") head.setAttribute("aria-sort", next);
        sort(table, column, next);
      });
    });
    var input = document.querySelector('input.filter[data-for="' + table.id + '"]');
    if (input) input.addEventListener("input", function () {
      filter(table, input.value.toLowerCase().split(/\\s+/).filter(Boolean));
    });
  });
})();
"""
