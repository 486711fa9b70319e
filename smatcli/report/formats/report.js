"use strict";
// Sorting and filtering of the tables. Rows without a class are data; block titles and averages keep their place.
(() => {
  function sortKey(cell) {
    const value = cell.getAttribute("data-value");
    if (value !== null) return value === "" ? null : Number(value);
    const text = cell.textContent.trim();
    return text === "" || text === "--" ? null : text;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sort(table, column, direction) {
    const sign = direction === "descending" ? -1 : 1;
    for (const body of table.tBodies) {
      const rows = Array.from(body.rows);
      const data = rows.filter((row) => row.className === "");
      data.sort((first, second) => {
        const original = first.dataset.place - second.dataset.place;
        if (direction === "none") return original;
        const a = sortKey(first.cells[column]), b = sortKey(second.cells[column]);
        if (a === null || b === null) return (a === null) - (b === null) || original; // empty cells last
        return sign * compare(a, b) || original;
      });
      const titles = rows.filter((row) => row.className === "block");
      const averages = rows.filter((row) => row.className === "average");
      body.append(...titles, ...data, ...averages);
    }
  }

  function filter(table, words) {
    for (const body of table.tBodies) {
      let shown = 0;
      for (const row of body.rows) {
        if (row.className !== "") continue;
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        if (!row.hidden) shown += 1;
      }
      for (const row of body.rows) {
        if (row.className === "block") row.hidden = shown === 0;
        if (row.className === "average") row.hidden = words.length > 0;
      }
    }
  }

  // The order of a heading's clicks: its first direction, the opposite one, the original order.
  function nextDirection(head) {
    const first = head.dataset.first, current = head.getAttribute("aria-sort");
    if (current === null) return first;
    return current === first ? (first === "descending" ? "ascending" : "descending") : "none";
  }

  for (const table of document.querySelectorAll("table.data")) {
    for (const body of table.tBodies) {
      Array.from(body.rows).forEach((row, place) => { row.dataset.place = place; });
    }
    const heads = Array.from(table.querySelectorAll("thead tr.heads th"));
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const direction = nextDirection(head);
        for (const other of heads) other.removeAttribute("aria-sort");
        if (direction !== "none") head.setAttribute("aria-sort", direction);
        sort(table, column, direction);
      });
    });
    const input = document.querySelector(`input.filter[data-for="${CSS.escape(table.id)}"]`);
    input?.addEventListener("input", () => {
      filter(table, input.value.toLowerCase().split(/\s+/).filter(Boolean));
    });
  }
})();
