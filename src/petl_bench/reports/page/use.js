// The box on top: what to use on a task within a memory, a size and a time that the reader sets.

const LIMITS = DATA.axes.filter((axis) => axis.less_is_better && axis.key !== "process_peak_rss_bytes");
const MOST_CANDIDATES = 8;

// What the report's tests say of two rows: 1 if the first is better, -1 if it is worse, 0 if no difference is shown.
const TESTED = new Map(DATA.pairs.flatMap(([a, b, sign]) => [[`${a} ${b}`, sign], [`${b} ${a}`, -sign]]));
const verdict = (a, b) => TESTED.get(`${a.id} ${b.id}`);

// Whether higher scores are better: 1, or -1 for errors.
const direction = ([row]) => (row.percent ? 1 : -1);
const bestOf = (rows) => rows.reduce((a, b) => (direction(rows) * (b.score - a.score) > 0 ? b : a));

// The best row, and the others by what is known of them against it, those with better scores first.
function ranked(rows) {
  const best = bestOf(rows);
  const others = rows.filter((row) => row !== best).sort((a, b) => direction(rows) * (b.score - a.score));
  return {
    best,
    worse: others.filter((row) => verdict(best, row) === 1),
    alike: others.filter((row) => verdict(best, row) === 0),
    untested: others.filter((row) => verdict(best, row) === undefined),
  };
}

const names = (rows) => rows.map((row) => row.method).join(", ");
const costText = (axis, row) => (isNumber(row[axis.key]) ? number(row[axis.key], axis.digits) : MISSING);

// Says what to use, as a title and a sentence, and no more than the runs carry.
function advice({ best, worse, alike, untested }, axis) {
  const mean = `${spreadText(best, best.score, best.sd)} (${scoreName(best)}, ${plural(best.n, "seed")})`;
  const highest = `${best.method} has the best mean within these limits, ${mean}`;
  if (untested.length) {
    const few = `${highest}, but there are too few seeds for a test against ${names(untested)}.`;
    return [`${best.method} scores best, which may be chance`, few];
  }
  if (alike.length) {
    const others = alike.length === 1 ? alike[0].method : `one of ${alike.length} others`;
    const known = [best, ...alike].filter((row) => isNumber(row[axis.key]));
    const least = known.length ? known.reduce((a, b) => (b[axis.key] < a[axis.key] ? b : a)) : null;
    const cheap = least ? ` Of all these, ${least.method} has the lowest ${axis.short}: ${costText(axis, least)}.` : "";
    return [`${best.method}, or ${others}`, `${highest}, but not significantly better than ${names(alike)}.${cheap}`];
  }
  if (worse.length) return [`Use ${best.method}`, `${highest}, and all others are shown to be worse.`];
  return [`Only ${best.method} keeps within these limits`, `It scores ${mean}.`];
}

function candidateTable(rows) {
  const head = ["method", scoreName(rows[0]), ...LIMITS.map((axis) => axis.short)];
  const line = (row) => el(
    "tr", { "data-m": row.m },
    el("td", { class: "text" }, methodMark(row.m), row.method),
    el("td", {}, spreadText(row, row.score, row.sd)),
    ...LIMITS.map((axis) => el("td", {}, costText(axis, row))),
  );
  return el(
    "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "What may be best, scrolls sideways" },
    el("table", {},
      el("thead", {}, el("tr", {}, ...head.map((name, i) => el("th", { scope: "col", class: i ? "" : "text" }, name)))),
      el("tbody", {}, ...rows.map(line))),
  );
}

// What is said of the rows of one task: `most` holds the limits by cost, `axis` is the cost that was limited last.
function answerTo(rows, most, axis) {
  const fits = (row) => [...most].every(([key, limit]) => isNumber(row[key]) && row[key] <= limit);
  const [fitting, beyond] = [rows.filter(fits), rows.filter((row) => !fits(row))];
  const note = (text, some) => (some.length ? el("p", { class: "sub" }, `${text}: ${names(some)}.`) : null);
  const over = note("Beyond a limit, or not measured", beyond);
  if (!fitting.length) return [el("h3", {}, "Nothing here keeps within these limits"), over];
  const found = ranked(fitting);
  const [title, sentence] = advice(found, axis);
  const candidates = [found.best, ...found.alike, ...found.untested];
  const isMixed = distinct(fitting.map((row) => row.protocol)).length > 1;
  return [
    el("h3", {}, title),
    el("p", {}, sentence),
    isMixed ? el("p", {}, "They were not all trained alike: the notes below the table say how.") : null,
    candidateTable(candidates.slice(0, MOST_CANDIDATES)),
    note("Not significantly different either", candidates.slice(MOST_CANDIDATES)),
    note("Shown to be worse", found.worse),
    over,
  ];
}

// A slider over what the rows cost; at its right end there is no limit.
function limitSlider(axis, rows, set) {
  const steps = distinct(rows.map((row) => row[axis.key]).filter(isNumber)).sort((a, b) => a - b);
  if (steps.length < 2) return null;
  const last = steps.length - 1;
  const output = el("output", {}, "no limit");
  const move = ({ target }) => {
    const step = Number(target.value);
    output.textContent = step === last ? "no limit" : `at most ${number(steps[step], axis.digits)}`;
    target.setAttribute("aria-valuetext", output.textContent);
    set(axis, step === last ? null : steps[step]);
  };
  const input = el("input", {
    type: "range", min: 0, max: last, value: last, oninput: move, "data-limit": axis.key,
    "aria-label": axis.name, "aria-valuetext": "no limit",
  });
  return el("label", {}, el("span", {}, axis.name, ": ", output), input);
}

function buildUse() {
  const panels = panelsOf(DATA.rows.filter((row) => isNumber(row.score))).filter((rows) => rows.length > 1);
  if (!panels.length || !LIMITS.length) return;
  panels.sort(([a], [b]) => Number(b.complete) - Number(a.complete));
  const options = panels.map(([row], i) => el("option", { value: i }, panelName(row)));
  const menu = el("select", { id: "use-task", onchange: () => open() }, ...options);
  const sliders = el("div", { class: "sliders" });
  const answer = el("div", { class: "answer", "aria-live": "polite" });
  const open = () => {
    const [rows, most] = [panels[Number(menu.value)], new Map()];
    const show = (axis) => answer.replaceChildren(...answerTo(rows, most, axis).filter(Boolean));
    const set = (axis, limit) => {
      if (limit === null) most.delete(axis.key);
      else most.set(axis.key, limit);
      show(axis);
    };
    sliders.replaceChildren(...LIMITS.map((axis) => limitSlider(axis, rows, set)).filter(Boolean));
    show(LIMITS[0]);
  };
  byId("use").append(
    panelHead("use", "What should I use?",
      "Set what you can afford. Every pair of methods is tested, and p values are corrected for all pairs of the task.",
      el("label", { hidden: panels.length < 2 }, "Task", menu)),
    sliders, answer,
  );
  byId("use").hidden = false;
  open();
}
