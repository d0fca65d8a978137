// The sections below the plots: papers, claims, deviations, definitions.

function plainTable(names, lines) {
  return el(
    "div", { class: "scroll prose", tabindex: 0, role: "region", "aria-label": "Table, scrolls sideways" },
    el("table", {},
      el("thead", {}, el("tr", {}, ...names.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
      el("tbody", {}, ...lines.map((cells) => el("tr", {}, ...cells)))),
  );
}

const cell = (value, kind) => el("td", { class: kind }, isNumber(value) && value !== "" ? value : MISSING);
// A published value keeps its digits, two at most.
const isTenths = (value) => Math.abs(value * 10 - Math.round(value * 10)) < 1e-6;
const asPrinted = (value) => number(value, isNumber(value) && !isTenths(value) ? 2 : 1);
const printedSpread = (mean, sd) => asPrinted(mean) + (isNumber(sd) ? ` ± ${asPrinted(sd)}` : "");
const withSpread = (mean, sd) => number(mean, 1) + (isNumber(mean) && isNumber(sd) ? ` ± ${number(sd, 1)}` : "");

function buildCosts() {
  if (!DATA.costs) return;
  const { words, numbers, lines } = DATA.costs;
  const kinds = [...words.map(() => ""), ...numbers.map(() => "number")];
  byId("costs").append(
    panelHead("costs", "Costs by machine",
      `Means over seeds on the same machine. The table and the plots show those of ${DATA.machines[0]}.`, null),
    plainTable([...words, ...numbers].map((name, i) => [name, kinds[i]]),
      lines.map((line) => line.map((value, i) => cell(value, kinds[i])))),
  );
  byId("costs").hidden = false;
}

function buildPublished() {
  if (!DATA.published.length) return;
  const judged = DATA.published.some((row) => row.verdict);
  const names = [["row", ""], ["source", ""], ["task", ""], ["metric", ""], ["published", "number"], ["ours", "number"],
    ["seeds", "number"], ["difference", "number"], ...(judged ? [["published value is", ""]] : []),
    ["comparable", "why"]];
  const lines = DATA.published.map((row) => {
    const both = isNumber(row.value) && isNumber(row.ours_mean);
    const gap = both ? row.ours_mean - row.value : null;
    return [
      cell(row.row), cell(row.source), cell(row.task), cell(row.metric),
      cell(printedSpread(row.value, row.sd), "number"), cell(withSpread(row.ours_mean, row.ours_sd), "number"),
      cell(isNumber(row.ours_mean) ? number(row.n) : null, "number"),
      cell(both ? (gap > 0 ? "+" : "") + number(gap, 1) : null, "number"),
      ...(judged ? [cell(row.verdict)] : []),
      cell([row.comparable ? "yes" : "no", row.why].filter(Boolean).join(": "), "why"),
    ];
  });
  byId("published").append(
    panelHead("published", "Published against reproduced",
      "Published values as their papers print them. Difference: ours minus published.", null),
    plainTable(names, lines),
  );
  byId("published").hidden = false;
}

const WORDS = new Set(["task", "comparison", "verdict", "class", "method"]);

// A section of tables that are the same in every form of a report.
function buildTables(id, title, sub, found) {
  if (!found.length) return;
  const tables = found.flatMap((table) => {
    const kinds = table.header.map((name) => (WORDS.has(name) ? "" : "number"));
    return [
      ...(found.length > 1 ? [el("h3", {}, table.title)] : []),
      plainTable(table.header.map((name, i) => [name, kinds[i]]),
        table.rows.map((row) => row.map((value, i) => cell(value, kinds[i])))),
      el("ul", { class: "list" }, ...table.notes.map((text) => el("li", {}, text))),
    ];
  });
  byId(id).append(panelHead(id, title, sub, null), ...tables);
  byId(id).hidden = false;
}

function buildComparisons() {
  buildTables("comparisons", "What these runs show", "Differences between methods, and whether the runs are enough to show them.", DATA.comparisons);
}

function buildClasses() {
  buildTables("classes", "Classes and calibration", "From the predictions that the runs have kept.", DATA.classes);
}

const VERDICT_CLASSES = { reproduced: "good", "not reproduced": "bad" };

function buildClaims() {
  if (!DATA.claims.length) return;
  const lines = DATA.claims.map((row) => [
    cell(row.claim, "why"), cell(row.source), cell(row.verdict, `verdict ${VERDICT_CLASSES[row.verdict] || ""}`),
    cell(row.numbers, "why"),
  ]);
  byId("claims").append(
    panelHead("claims", "Claims", "Sentences of the papers as tests over these records.", null),
    plainTable([["claim", "why"], ["source", ""], ["verdict", ""], ["numbers", "why"]], lines),
  );
  byId("claims").hidden = false;
}

function buildDeviations() {
  if (!DATA.deviations.length) return;
  byId("deviations").append(
    panelHead("deviations", "Deviations", "How this study differs from the papers that it is compared with.", null),
    el("ul", { class: "list" }, ...DATA.deviations.map((text) => el("li", {}, text))),
  );
  byId("deviations").hidden = false;
  // They follow the paper comparison if there is one, else the table.
  byId(DATA.published.length ? "published" : "table").after(byId("deviations"));
}

function buildNotes() {
  const protocols = distinct(DATA.rows.map((row) =>
    `${row.task}: ${plural(row.rows, "training row")}, scored on ${plural(row.evaluated, "row")} of ${row.split}; ` +
    `${row.selection} checkpoint by ${row.metric} on ${row.selection_split}`));
  const list = (pairs) => el("dl", {}, ...pairs.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
  const { origin } = DATA;
  const versions = Object.entries(origin.versions).filter(([, known]) => known.length);
  byId("notes").append(
    el("h2", { id: "notes-title" }, "How to read this page"),
    list(DATA.columns.map((column) => [column.name, column.note])),
    el("h3", {}, "Protocols"), el("ul", { class: "list" }, ...protocols.map((text) => el("li", {}, text))),
    el("h3", {}, "Where the numbers come from"),
    list([
      ...versions.map(([name, known]) => [name, known.join(", ")]),
      ...(DATA.machines.length ? [["times, memory of devices, speed", `measured on ${DATA.machines[0]}`]] : []),
      ...(origin.hardware.length ? [["machines", origin.hardware.join("; ")]] : []),
      ...(origin.commits.length ? [["commits", origin.commits.join(", ")]] : []),
    ]),
  );
}
