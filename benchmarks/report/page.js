"use strict";
// The page shows the same without this: it only filters, sorts and expands.
for (const part of document.querySelectorAll(".js")) part.hidden = false;

const groups = [...document.querySelectorAll("table.rows > tbody")];
const filter = document.getElementById("filter");
filter.form.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const group of groups) {
    const text = [...group.rows[0].cells].slice(0, 2).map((cell) => cell.textContent).join(" ").toLowerCase();
    group.hidden = !words.every((word) => text.includes(word));
    shown += !group.hidden;
  }
  document.getElementById("count").textContent = words.length ? `${shown} of ${groups.length} rows` : "";
});

for (const [id, open] of [["open", true], ["close", false]]) {
  document.getElementById(id).addEventListener("click", () => {
    for (const group of groups) group.querySelector("details").open = open && !group.hidden;
  });
}

function value(group, column) {
  const cell = group.rows[0].cells[column];
  const given = cell.dataset.value;
  return given === undefined ? cell.textContent : given === "" ? null : Number(given);
}

for (const head of document.querySelectorAll("table.rows > thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const table = head.closest("table");
    const numeric = head.classList.contains("n");
    const was = head.getAttribute("aria-sort");
    const down = was ? was === "ascending" : numeric;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = head.cellIndex;
    const order = [...table.tBodies].map((group) => [value(group, column), group]);
    // What was not measured goes last, either way.
    order.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const by = typeof a === "number" ? a - b : a.localeCompare(b);
      return down ? -by : by;
    });
    table.append(...order.map(([, group]) => group));
  });
}
