// The panels that hold plots.

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
    panelHead("scores", "Score against cost",
      "Dashed: the front of the methods that were trained alike. Bars: one sd of three seeds or more.",
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
    else chart.replaceChildren(el("p", { class: "nothing" }, "No row matches these filters."));
  };
  menu.addEventListener("change", () => redraw(shownRows()));
  const head = panelHead(id, title, sub, label);
  byId("lines").append(el("section", { class: "panel", id, "aria-labelledby": `${id}-title` }, head, chart));
  redraws.push(redraw);
}

function rowsCurvesOf(rows) {
  const known = new Set(rows.filter((row) => isNumber(row.score)).map((row) => row.id));
  return DATA.rows_curves
    .map((curve) => ({ ...curve, shown: curve.rows.filter((id) => known.has(id)).map((id) => DATA.rows[id]) }))
    .filter((curve) => curve.shown.length > 1);
}

function buildLines() {
  buildLinePlot(
    "history", "Learning curves", "Score on the selection split, mean over seeds; band: one sd.",
    (rows) => panelsOf(rows.filter((row) => row.history.length)).flat(), panelName, panelKey, redrawHistory,
  );
  const taskOf = (curve) => JSON.stringify([curve.task, curve.shown[0].backbone]);
  const curveName = (curve) => (BACKBONES.length > 1 ? `${curve.task}, ${curve.shown[0].backbone}` : curve.task);
  buildLinePlot(
    "low-resource", "Fewer training rows", "Score by the number of training rows, mean over seeds; band: one sd.",
    rowsCurvesOf, curveName, taskOf, redrawRowsCurves,
  );
  const isOn = ({ method, task }) => !state.off.method.has(method) && !state.off.task.has(task);
  const studies = distinct(DATA.tuning.map((curve) => curve.study));
  const searched = ({ study, task }) => (studies.length > 1 ? `${task}, ${study}` : task);
  buildLinePlot(
    "tuning", "Tuning curves",
    "Score on the reported rows of the best of n trials, the median; band: 80 %, for all numbers of trials at once.",
    () => DATA.tuning.filter(isOn), searched, searched, redrawTuning,
  );
  if (DATA.tuning.length) {
    byId("tuning").append(el("ul", { class: "list" }, ...DATA.tuning_sentences.map((text) => el("li", {}, text))));
  }
  buildLinePlot(
    "variability", "Variability by layer",
    "ν of each layer; dashed: with shuffled labels; shaded: the layers adapted.",
    (rows) => rows.filter((row) => row.variability), panelName, panelKey, redrawVariability,
  );
  buildLinePlot(
    "roc", "In or out of distribution",
    "ROC curves of one score, mean over seeds; band: one sd; dashed: chance.",
    (rows) => panelsOf(rows).flat().flatMap((row) => Object.keys(row.roc).map((score) => ({ row, score }))),
    ({ row, score }) => `${panelName(row)}, ${score}`, ({ row, score }) => `${panelKey(row)} ${score}`, redrawRoc,
  );
}
