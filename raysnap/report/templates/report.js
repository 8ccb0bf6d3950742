"use strict";
(function () {
  document.documentElement.classList.add("js");

  const prepare = function (table) {
    const headers = Array.from(table.tHead.rows[0].cells);
    const rows = () => Array.from(table.tBodies).flatMap((body) => Array.from(body.rows));

    const showAll = function () {
      for (const body of table.tBodies) body.hidden = false;
      const more = document.querySelector('.show-more[data-for="' + table.id.slice(6) + '"]');
      if (more) more.remove();
    };

    const sort = function (header, column) {
      showAll();
      const isUp = header.getAttribute("aria-sort") !== "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const isNumber = header.dataset.type === "number";
      const key = (row) => isNumber ? row.cells[column].dataset.value : row.cells[column].textContent.trim();
      const sign = isUp ? 1 : -1;
      const sorted = rows().sort(function (one, other) {
        const a = key(one), b = key(other);
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      });
      table.tBodies[0].append(...sorted);
    };

    if (rows().length > 1) {
      headers.forEach(function (header, column) {
        const button = document.createElement("button");
        button.type = "button";
        button.append(...header.childNodes);
        header.append(button);
        button.addEventListener("click", () => sort(header, column));
      });
    }
    return { rows: rows, showAll: showAll };
  };

  for (const table of document.querySelectorAll("table.data")) {
    const parts = prepare(table);
    const name = table.id.slice(6);
    const more = document.querySelector('.show-more[data-for="' + name + '"]');
    if (more) more.addEventListener("click", parts.showAll);
    const controls = document.querySelector('.controls[data-for="' + name + '"]');
    if (!controls) continue;
    const input = controls.querySelector(".filter");
    const choices = Array.from(controls.querySelectorAll(".choice"));
    let status = "";
    const filter = function () {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const all = parts.rows();
      let shown = 0;
      for (const row of all) {
        const text = row.textContent.toLowerCase();
        row.hidden = !((!status || row.dataset.status === status) && words.every((word) => text.includes(word)));
        shown += row.hidden ? 0 : 1;
      }
      controls.querySelector(".shown").textContent = shown + " of " + all.length + " shown";
    };
    input.addEventListener("input", filter);
    for (const choice of choices) {
      choice.addEventListener("click", function () {
        status = choice.dataset.status;
        for (const other of choices) other.setAttribute("aria-pressed", String(other === choice));
        filter();
      });
    }
    filter();
  }

  window.addEventListener("beforeprint", function () {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
