"use strict";
(function () {
  const root = document.documentElement;
  root.classList.add("js");

  const table = document.getElementById("trial-table");
  if (table) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const input = document.getElementById("trial-filter");
    const choices = Array.from(document.querySelectorAll(".choice"));
    const count = document.getElementById("trial-count");
    let status = "";

    const filter = function () {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !((!status || row.dataset.status === status) && words.every((word) => text.includes(word)));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = shown + " of " + rows.length + " shown";
    };

    const sort = function (header, column) {
      const isUp = header.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const isNumber = header.dataset.type === "number";
      const key = (row) => isNumber ? row.cells[column].dataset.value : row.cells[column].textContent;
      const sign = isUp ? 1 : -1;
      rows.sort(function (one, other) {
        const a = key(one), b = key(other);
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      });
      body.append(...rows);
    };

    Array.from(table.tHead.rows[0].cells).forEach(function (header, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(header, column));
    });
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

  for (const button of document.querySelectorAll(".show-more")) {
    button.addEventListener("click", function () {
      for (const more of button.previousElementSibling.querySelectorAll(".more")) more.hidden = false;
      button.remove();
    });
  }

  window.addEventListener("beforeprint", function () {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
