// The page, top to bottom.

function buildHead() {
  const { origin } = DATA;
  byId("descriptions").append(...DATA.descriptions.map((text) => el("p", {}, text)));
  const versions = Object.entries(origin.versions).filter(([, known]) => known.length);
  const parts = [
    plural(origin.runs, "record"),
    `seed${origin.seeds.length === 1 ? "" : "s"} ${seedText(origin.seeds)}`,
    origin.precisions.join(", "),
    origin.hardware.length > 1 ? `${origin.hardware.length} kinds of machine` : origin.hardware[0],
    ...versions.filter(([name]) => name !== "python").map(([name, known]) => `${name} ${known.join(" / ")}`),
  ];
  byId("origin").textContent = parts.filter(Boolean).join(" · ");
  const notices = [];
  const unfinished = Object.entries(origin.unfinished).map(([status, n]) => `${number(n)} ${status.replaceAll("_", " ")}`);
  if (unfinished.length) notices.push(`Left out, because they did not finish: ${unfinished.join(", ")}.`);
  if (origin.others > 0) notices.push(`${plural(origin.others, "finished record")} left out: without a score, or not chosen by the study.`);
  if (DATA.rows.every((row) => row.n < 2)) notices.push("One seed each: small differences between rows may be chance.");
  byId("notices").append(...notices.map((text) => el("p", { class: "notice" }, text)));
}

function seedText(seeds) {
  const run = seeds.length > 2 && seeds.every((seed, i) => seed === seeds[0] + i);
  return run ? `${seeds[0]}–${seeds.at(-1)}` : seeds.join(", ");
}

function card(name, value, more, kind = "card") {
  return el("div", { class: kind }, el("div", { class: "name" }, name), el("div", { class: "value" }, ...value), more);
}

function buildCards() {
  const more = (text) => el("div", { class: "more" }, text);
  const rows = distinct(DATA.rows.map((row) => row.n)).sort((a, b) => a - b);
  const seeds = rows.length > 1 ? `${rows[0]}–${rows.at(-1)} seeds a row` : `${plural(rows[0], "seed")} a row`;
  const cards = [
    card("records", [number(DATA.origin.runs)], more(seeds)),
    card("methods", [number(METHODS.length)], more(
      `${plural(TASKS.length, "task")}, ${plural(BACKBONES.length, "backbone")}${BACKBONES.length > 1 ? "" : ` (${BACKBONES[0]})`}`,
    )),
  ];
  for (const rows of [...panelsOf(DATA.rows.filter((row) => isNumber(row.score))).values()].slice(0, 4)) {
    cards.push(bestCard(rows));
  }
  byId("cards").append(...cards);
}

function bestCard(rows) {
  const sign = rows[0].percent ? 1 : -1;
  const best = rows.reduce((a, b) => (sign * b.score > sign * a.score ? b : a));
  const lines = [el("div", { class: "more" }, el("b", {}, best.label), `, ${number(best.params)} params`)];
  const close = rows.filter((row) => row.percent && row.score >= best.score - 1);
  const small = close.length ? close.reduce((a, b) => (b.params < a.params ? b : a)) : best;
  if (small !== best) {
    lines.push(el("div", { class: "more" }, "within 1 point: ", el("b", {}, small.label), `, ${number(small.params)} params`));
  }
  const spread = isNumber(best.sd) ? [el("small", {}, ` ± ${scoreText(best, best.sd)}`)] : [];
  return card(
    `best mean, ${panelName(best)} (${scoreName(best)})`, [scoreText(best, best.score), ...spread],
    el("div", {}, ...lines), "card best-card",
  );
}

function chips(kind, name, values) {
  const boxes = values.map((value) => {
    const change = (event) => {
      state.off[kind][event.target.checked ? "delete" : "add"](value);
      refresh();
    };
    const input = el("input", { type: "checkbox", checked: true, onchange: change, "data-filter": kind, value });
    const m = kind === "method" ? METHOD_NUMBER.get(value) : null;
    return el("label", { class: "chip", "data-m": m }, input, m === null ? null : methodMark(m), el("span", { class: "text" }, value));
  });
  const setAll = (on) => () => {
    for (const input of byId("filters").querySelectorAll(`[data-filter="${kind}"]`)) input.checked = on;
    state.off[kind] = new Set(on ? [] : values);
    refresh();
  };
  const both = values.length > 3
    ? el("div", {},
      el("button", { type: "button", class: "button plain", onclick: setAll(true), "aria-label": `All ${name}` }, "all"),
      el("button", { type: "button", class: "button plain", onclick: setAll(false), "aria-label": `No ${name}` }, "none"))
    : null;
  return el(
    "div", { class: "group", role: "group", "aria-label": name },
    el("div", { class: "group-head" }, name, both), el("div", { class: "chips" }, ...boxes),
  );
}

function buildFilters() {
  const search = el("input", {
    type: "search", id: "search", placeholder: "Search methods, tasks", "aria-label": "Search methods, tasks, backbones",
    oninput: (event) => {
      state.text = event.target.value.trim().toLowerCase();
      refresh();
    },
  });
  const reset = () => {
    search.value = state.text = "";
    for (const kind of Object.keys(state.off)) state.off[kind].clear();
    for (const input of byId("filters").querySelectorAll("[data-filter]")) input.checked = true;
    refresh();
  };
  const foot = el(
    "div", { class: "filter-foot" }, el("span", { class: "count", id: "count", "aria-live": "polite" }),
    el("button", { type: "button", class: "button plain", id: "reset", onclick: reset }, "Reset"),
  );
  const groups = [TASKS.length > 1 ? chips("task", "Tasks", TASKS) : null,
    BACKBONES.length > 1 ? chips("backbone", "Backbones", BACKBONES) : null, chips("method", "Methods", METHODS)];
  byId("filters").append(el("div", { class: "search" }, search, foot), el("div", { class: "groups" }, ...groups.filter(Boolean)));
  redraws.push((rows) => {
    byId("count").textContent = `${number(rows.length)} of ${plural(DATA.rows.length, "row")}`;
  });
}

function panelHead(id, title, sub, choice) {
  return el(
    "div", { class: "panel-head" },
    el("div", {}, el("h2", { id: `${id}-title` }, title), el("p", { class: "sub" }, sub)), choice,
  );
}

function buildScores() {
  if (!DATA.axes.length) return;
  const choose = (event) => {
    state.axis = event.target.value;
    redrawScores(shownRows());
  };
  const options = DATA.axes.map((axis) => el("option", { value: axis.key }, axis.name));
  byId("scores").append(
    panelHead("scores", "Score against cost", "Dashed: the front of what no other method beats in both. Bars: one sd over seeds.",
      el("label", {}, "Against", el("select", { id: "axis", onchange: choose }, ...options))),
    el("div", { class: "multiples", id: "multiples" }),
    el("p", { class: "sub", id: "more-panels" }),
  );
  redraws.push(redrawScores);
}

// A plot of one task at a time, with a menu of those that have something to draw.
function buildLinePlot(id, title, sub, items, nameOf, keyOf, draw) {
  const names = new Map(items(DATA.rows).map((item) => [keyOf(item), nameOf(item)]));
  if (!names.size) return;
  const chart = el("div", { class: "chart" });
  const menu = el("select", { id: `${id}-menu`, "aria-label": `Task of: ${title}` });
  const label = el("label", { hidden: names.size < 2 }, "Task", menu);
  menu.append(...[...names].map(([key, name]) => el("option", { value: key }, name)));
  const redraw = (rows) => {
    const there = items(rows);
    const keys = new Set(there.map(keyOf));
    for (const option of menu.options) option.disabled = !keys.has(option.value);
    if (keys.size && !keys.has(menu.value)) menu.value = [...keys][0];
    const mine = there.filter((item) => keyOf(item) === menu.value);
    if (mine.length) draw(chart, mine);
    else chart.replaceChildren(el("p", { class: "nothing" }, "Nothing here fits these filters."));
  };
  menu.addEventListener("change", () => redraw(shownRows()));
  byId("lines").append(el("section", { class: "panel", id, "aria-labelledby": `${id}-title` }, panelHead(id, title, sub, label), chart));
  redraws.push(redraw);
}

function rowsCurvesOf(rows) {
  const shown = new Set(rows.map((row) => row.id));
  return DATA.rows_curves
    .map((curve) => ({ ...curve, shown: curve.rows.filter((id) => shown.has(id)).map((id) => DATA.rows[id]).filter((row) => isNumber(row.score)) }))
    .filter((curve) => curve.shown.length > 1);
}

function buildLines() {
  buildLinePlot(
    "history", "Learning curves", "Score on the selection split, mean over seeds; band: one sd.",
    (rows) => rows.filter((row) => row.history.length), panelName, panelKey, redrawHistory,
  );
  const taskOf = (curve) => JSON.stringify([curve.task, curve.shown[0].backbone]);
  const curveName = (curve) => (BACKBONES.length > 1 ? `${curve.task}, ${curve.shown[0].backbone}` : curve.task);
  buildLinePlot(
    "low-resource", "Fewer training rows", "Score by the number of training rows, mean over seeds; band: one sd.",
    rowsCurvesOf, curveName, taskOf, redrawRowsCurves,
  );
  buildLinePlot(
    "variability", "Variability by layer", "ν of each layer; dashed: with shuffled labels; shaded: the layers adapted.",
    (rows) => rows.filter((row) => row.variability), panelName, panelKey, redrawVariability,
  );
}

function plainTable(names, lines) {
  return el(
    "div", { class: "scroll prose", tabindex: 0, role: "region", "aria-label": "Table, scrolls sideways" },
    el("table", {},
      el("thead", {}, el("tr", {}, ...names.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
      el("tbody", {}, ...lines.map((cells) => el("tr", {}, ...cells)))),
  );
}

const cell = (value, kind) => el("td", { class: kind }, value === null || value === undefined || value === "" ? MISSING : value);
const twoDigits = (mean, sd) => (isNumber(mean) ? number(mean, 1) + (isNumber(sd) ? ` ± ${number(sd, 1)}` : "") : MISSING);

function buildPublished() {
  if (!DATA.published.length) return;
  const names = [["row", ""], ["source", ""], ["task", ""], ["metric", ""], ["published", "number"], ["ours", "number"],
    ["seeds", "number"], ["difference", "number"], ["comparable", "why"]];
  const lines = DATA.published.map((row) => {
    const both = isNumber(row.value) && isNumber(row.ours_mean);
    const gap = both ? row.ours_mean - row.value : null;
    return [
      cell(row.row), cell(row.source), cell(row.task), cell(row.metric), cell(twoDigits(row.value, row.sd), "number"),
      cell(twoDigits(row.ours_mean, row.ours_sd), "number"), cell(isNumber(row.n) ? number(row.n) : null, "number"),
      cell(both ? (gap > 0 ? "+" : "") + number(gap, 1) : null, "number"),
      cell([row.comparable ? "yes" : "no", row.why].filter(Boolean).join(": "), "why"),
    ];
  });
  byId("published").append(
    panelHead("published", "Published against reproduced", "Published values as their papers print them. Difference: ours minus published.", null),
    plainTable(names, lines),
  );
  byId("published").hidden = false;
}

function buildClaims() {
  if (!DATA.claims.length) return;
  const lines = DATA.claims.map((row) => [
    cell(row.claim, "why"), cell(row.source), el("td", { class: `verdict ${verdictKind(row.verdict)}` }, row.verdict || MISSING),
    cell(numbersText(row.numbers), "why"),
  ]);
  byId("claims").append(
    panelHead("claims", "Claims", "Sentences of the papers as tests over these records.", null),
    plainTable([["claim", "why"], ["source", ""], ["verdict", ""], ["numbers", "why"]], lines),
  );
  byId("claims").hidden = false;
}

function verdictKind(verdict) {
  const text = String(verdict || "").toLowerCase();
  if (/not test|untest|undecided|open|too few/.test(text)) return "";
  if (/^(no\b|not|fail|false|contradict|refut|does not)/.test(text)) return "bad";
  return /^(yes|hold|support|reproduced|true|confirm)/.test(text) ? "good" : "";
}

function numbersText(numbers) {
  if (numbers === null || typeof numbers !== "object") return numbers;
  const write = (value) => (typeof value === "number" ? brief(value) : typeof value === "object" ? numbersText(value) : String(value));
  if (Array.isArray(numbers)) return numbers.map(write).join("; ");
  return Object.entries(numbers).map(([name, value]) => `${name}: ${write(value)}`).join("; ");
}

function buildDeviations() {
  if (!DATA.deviations.length) return;
  byId("deviations").append(
    panelHead("deviations", "Deviations", "In what this study departs from what it is held against.", null),
    el("ul", { class: "list" }, ...DATA.deviations.map((text) => el("li", {}, text))),
  );
  byId("deviations").hidden = false;
  // Beside the comparison with papers where there is one, else beside the table.
  byId(DATA.published.length ? "published" : "table").after(byId("deviations"));
}

function buildNotes() {
  const protocols = distinct(DATA.rows.map((row) =>
    `${row.task}: ${plural(row.rows, "training row")}, scored on ${plural(row.evaluated, "row")} of ${row.split}; ` +
    `${row.selection} checkpoint by ${row.metric} on ${row.selection_split}`));
  const list = (pairs) => el("dl", {}, ...pairs.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
  const { origin } = DATA;
  byId("notes").append(
    el("h2", { id: "notes-title" }, "How to read this page"),
    list(DATA.columns.map((column) => [column.name, column.note])),
    el("h3", {}, "Protocols"), el("ul", { class: "list" }, ...protocols.map((text) => el("li", {}, text))),
    el("h3", {}, "Where the numbers come from"),
    list([
      ...Object.entries(origin.versions).filter(([, known]) => known.length).map(([name, known]) => [name, known.join(", ")]),
      ...(origin.hardware.length ? [["machines", origin.hardware.join("; ")]] : []),
      ...(origin.commits.length ? [["commits", origin.commits.join(", ")]] : []),
    ]),
  );
}

function buildTheme() {
  const root = document.documentElement;
  const isDark = () => root.dataset.theme === "dark" || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  const button = byId("theme");
  const tell = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
    button.setAttribute("aria-pressed", String(isDark()));
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  tell();
}

buildTheme();
buildHead();
buildCards();
buildFilters();
buildScores();
buildTable();
buildLines();
buildPublished();
buildClaims();
buildDeviations();
buildNotes();
redraws.push(redrawTable);
let drawnWidth = null;
new ResizeObserver(() => {
  const width = document.documentElement.clientWidth;
  if (width === drawnWidth) return;
  drawnWidth = width;
  refresh();
}).observe(document.documentElement);
refresh();
