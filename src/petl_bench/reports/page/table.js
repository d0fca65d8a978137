// The table. Only the first rows of a long table are shown, so that sorting stays fast.

const FIRST_ROWS = 200;
const builtRows = new Map();
const sorting = { key: null, descending: false, order: DATA.rows, all: false };

function cellOf(row, column) {
  const value = row[column.key];
  if (column.key === "method") {
    const name = el("span", {}, row.method);
    const button = { type: "button", class: "pin", "aria-pressed": "false", title: "Keep highlighted" };
    return el("td", { class: "text" }, el("button", { ...button, "data-m": row.m }, methodMark(row.m), name));
  }
  if (column.kind === "text") return el("td", { class: "text" }, value);
  if (!isNumber(value)) return el("td", { class: "missing" }, MISSING);
  if (column.key === "score") {
    const sd = isNumber(row.sd) ? `± ${scoreText(row, row.sd)}` : "";
    const cell = el("td", {}, el("span", { class: "mean" }, scoreText(row, value)), el("span", { class: "sd" }, sd));
    cell.classList.toggle("best", row.bold);
    return cell;
  }
  if (column.key === "low") return el("td", {}, `${scoreText(row, row.low)} – ${scoreText(row, row.high)}`);
  if (column.key === "n") return el("td", { title: `seeds ${row.seeds.join(", ")}` }, number(value));
  return el("td", {}, column.kind === "score" ? scoreText(row, value) : number(value, column.digits));
}

function headerOf(column) {
  const arrow = el("span", { class: "arrow", "aria-hidden": "true" });
  const action = { type: "button", title: column.note, onclick: () => sortBy(column) };
  const button = el("button", action, column.name, arrow);
  const kind = column.kind === "text" ? "sortable text" : "sortable";
  return el("th", { scope: "col", class: kind, "aria-sort": "none", "data-key": column.key }, button);
}

function sortBy(column) {
  sorting.descending = sorting.key === column.key ? !sorting.descending : column.kind === "score";
  sorting.key = column.key;
  const sign = sorting.descending ? -1 : 1;
  const compareText = new Intl.Collator("en", { numeric: true }).compare;
  const compare = column.kind === "text" ? compareText : (a, b) => a - b;
  sorting.order = DATA.rows.slice().sort((a, b) => {
    const [x, y] = [a[column.key], b[column.key]];
    // Missing values come last in both directions.
    if (!isNumber(x) || !isNumber(y)) return Number(!isNumber(x)) - Number(!isNumber(y)) || a.id - b.id;
    return sign * compare(x, y) || a.id - b.id;
  });
  redrawTable(shownRows());
  for (const header of document.querySelectorAll("th[data-key]")) {
    const mine = header.dataset.key === column.key;
    header.setAttribute("aria-sort", mine ? (sorting.descending ? "descending" : "ascending") : "none");
    header.querySelector(".arrow").textContent = mine ? (sorting.descending ? "▾" : "▴") : "";
  }
}

const shownColumns = DATA.columns.filter((column) => column.key !== "backbone" || BACKBONES.length > 1);

function tableRow(row) {
  if (!builtRows.has(row.id)) {
    builtRows.set(row.id, el("tr", { "data-m": row.m }, ...shownColumns.map((column) => cellOf(row, column))));
  }
  return builtRows.get(row.id);
}

function buildTable() {
  const showAll = () => {
    sorting.all = true;
    redrawTable(shownRows());
  };
  byId("table").append(
    el(
      "div", { class: "panel-head" },
      el("div", {}, el("h2", { id: "table-title" }, "Every method in numbers"), el("p", { class: "sub" },
        "Click on a column's name to sort. Bold: the best of its task and what is not significantly different from it; nothing is bold " +
        "where the runs are too few for a test. Definitions are at the end of the page.")),
    ),
    el(
      "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table, scrolls sideways" },
      el(
        "table", {},
        el("thead", {}, el("tr", {}, ...shownColumns.map(headerOf))),
        el("tbody", { id: "rows" }),
      ),
      el("p", { class: "empty", id: "no-rows", hidden: true }, "No row matches these filters."),
      el("button", { type: "button", class: "button more-rows", id: "more-rows", onclick: showAll, hidden: true }),
    ),
    el("ul", { class: "list", hidden: !DATA.notes.length },
      ...DATA.notes.map((text) => el("li", {}, text))),
  );
}

function redrawTable(rows) {
  const fitting = new Set(rows);
  const order = sorting.order.filter((row) => fitting.has(row));
  const shown = sorting.all ? order : order.slice(0, FIRST_ROWS);
  byId("rows").replaceChildren(...shown.map(tableRow));
  byId("no-rows").hidden = order.length > 0;
  byId("more-rows").hidden = shown.length === order.length;
  byId("more-rows").textContent = `Show all ${number(order.length)} rows`;
  link();
}
