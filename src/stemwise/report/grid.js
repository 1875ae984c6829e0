// Tables with data-sortable: a click on a column's head sorts by it, another one turns the order round.
(() => {
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replace("−", "-");
    const minutes = /^(\d+):(\d\d)$/.exec(text);
    const number = minutes ? 60 * minutes[1] + Number(minutes[2]) : Number(text);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (one, two) => {
    if (typeof one === "number" && typeof two === "number") return one - two;
    if (typeof one !== typeof two) return typeof one === "number" ? -1 : 1; // what has no score comes last
    return one.localeCompare(two, undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((one, two) => {
          const [a, b] = [value(one, column), value(two, column)];
          const known = typeof a === typeof b;
          return known && down ? compare(b, a) : compare(a, b);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
