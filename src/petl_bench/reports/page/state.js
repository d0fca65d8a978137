// The state of the page: filters, the method under the pointer, the pinned method.

const DATA = JSON.parse(byId("data").textContent);
const METHODS = DATA.methods;
const METHOD_NUMBER = new Map(METHODS.map((method, index) => [method, index]));

const distinct = (values) => [...new Set(values)];
const TASKS = distinct(DATA.rows.map((row) => row.task));
const BACKBONES = distinct(DATA.rows.map((row) => row.backbone));

const SIZES = distinct(DATA.rows.map((row) => row.rows)).sort((a, b) => a - b);
const sizesOf = new Map(TASKS.map((task) => [task, new Set()]));
for (const row of DATA.rows) sizesOf.get(row.task).add(row.rows);

// Scores are compared on one task, with one backbone, after training on the same number of rows.
const panelKey = (row) => JSON.stringify([row.task, row.backbone, row.rows]);
function panelName(row) {
  const backbone = BACKBONES.length > 1 ? row.backbone : null;
  const size = sizesOf.get(row.task).size > 1 ? plural(row.rows, "row") : null;
  return [row.task, backbone, size].filter(Boolean).join(", ");
}

for (const row of DATA.rows) {
  row.m = METHOD_NUMBER.get(row.method);
  row.searchText = `${row.method} ${row.label} ${row.task} ${row.backbone}`.toLowerCase();
}

const state = {
  text: "",
  off: { method: new Set(), task: new Set(), backbone: new Set(), rows: new Set() },
  axis: DATA.axes.length ? DATA.axes[0].key : null,
  panels: {},
  hovered: null,
  // The mark or row under the pointer.
  target: null,
  pinned: null,
};
const redraws = [];

const isShown = (row) =>
  (!state.text || state.text.split(/\s+/).every((word) => row.searchText.includes(word))) &&
  Object.entries(state.off).every(([kind, off]) => !off.has(row[kind]));
const shownRows = () => DATA.rows.filter(isShown);

let waiting = false;
// Several changes within one frame are drawn once.
function refresh() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const rows = shownRows();
    for (const redraw of redraws) redraw(rows);
  });
}

// Highlights a method in table, legend and plots: all marks fade, and copies of its own are drawn above them.
function link() {
  const hot = state.hovered ?? state.pinned;
  document.documentElement.classList.toggle("linked", hot !== null);
  for (const layer of document.querySelectorAll(".over")) {
    const mine = hot === null ? [] : layer.previousElementSibling.querySelectorAll(`[data-m="${hot}"]`);
    layer.replaceChildren(...Array.from(mine, copyOf));
  }
  for (const node of document.querySelectorAll(".hot")) node.classList.remove("hot");
  const named = document.querySelectorAll(`tr[data-m="${hot}"], .chip[data-m="${hot}"]`);
  for (const node of named) node.classList.add("hot");
  for (const button of document.querySelectorAll(".pin")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.m) === state.pinned));
  }
}

function copyOf(mark) {
  const copy = mark.cloneNode(true);
  copy.classList.remove("pt");
  copy.classList.toggle("at", mark === state.target);
  for (const name of ["tabindex", "role", "aria-label", "data-m"]) copy.removeAttribute(name);
  return copy;
}

function hover(m, target = null) {
  if (m === state.hovered && target === state.target) return;
  state.hovered = m;
  state.target = target;
  link();
}

function pin(m) {
  state.pinned = state.pinned === m ? null : m;
  link();
}
