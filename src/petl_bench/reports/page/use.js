// The box on top: what to use on a task within a memory, a size or a time that the reader sets.

const LIMITS = DATA.axes.filter((axis) => axis.less_is_better && axis.key !== "process_peak_rss_bytes");
const MOST_CANDIDATES = 8;

// What the tests of the report say of two rows: 1 if the first is better, -1 if it is worse, 0 if no difference is shown.
const TESTED = new Map(DATA.pairs.flatMap(([a, b, sign]) => [[`${a} ${b}`, sign], [`${b} ${a}`, -sign]]));
const verdict = (a, b) => TESTED.get(`${a.id} ${b.id}`);

function bestOf(rows) {
  const sign = rows[0].percent ? 1 : -1;
  return rows.reduce((a, b) => (sign * b.score > sign * a.score ? b : a));
}

// The best row, and the others by what is known of them against it, those with better scores first.
function ranked(rows) {
  const best = bestOf(rows);
  const sign = best.percent ? 1 : -1;
  const others = rows.filter((row) => row !== best).sort((a, b) => sign * (b.score - a.score));
  return {
    best,
    worse: others.filter((row) => verdict(best, row) === 1),
    alike: others.filter((row) => verdict(best, row) === 0),
    untested: others.filter((row) => verdict(best, row) === undefined),
  };
}

const names = (rows) => rows.map((row) => row.method).join(", ");
const costText = (axis, row) => (isNumber(row[axis.key]) ? number(row[axis.key], axis.digits) : MISSING);

// Says what to use, and no more than the runs carry.
function advice({ best, worse, alike, untested }, axis) {
  const mean = `${spreadText(best, best.score, best.sd)} (${scoreName(best)}, ${plural(best.n, "seed")})`;
  const scored = `${best.method} has the highest mean within these limits, ${mean}`;
  if (!worse.length && !alike.length && !untested.length) return [`Only ${best.method} keeps within these limits`, `It scores ${mean}.`];
  if (untested.length) {
    const few = `${scored}, but there are too few seeds for a test against ${names(untested)}.`;
    return [`${best.method} scores highest, which may be chance`, few];
  }
  if (!alike.length) return [`Use ${best.method}`, `${scored}, and all others are shown to be worse.`];
  const known = [best, ...alike].filter((row) => isNumber(row[axis.key]));
  const least = known.length ? known.reduce((a, b) => (b[axis.key] < a[axis.key] ? b : a)) : null;
  const cheapest = least ? ` Of all these, ${least.method} has the lowest ${axis.short}: ${costText(axis, least)}.` : "";
  return [
    `${best.method}, or ${alike.length === 1 ? alike[0].method : `one of ${alike.length} others`}`,
    `${scored}, but these runs do not tell it from ${names(alike)}.${cheapest}`,
  ];
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
      el("tbody", {}, ...rows.slice(0, MOST_CANDIDATES).map(line))),
  );
}

function buildUse() {
  const scored = DATA.rows.filter((row) => isNumber(row.score));
  const panels = panelsOf(scored).filter((rows) => rows.length > 1);
  if (!panels.length || !LIMITS.length) return;
  panels.sort((a, b) => Number(b[0].complete) - Number(a[0].complete));
  const chosen = { rows: panels[0], most: new Map(), axis: LIMITS[0] };
  const menu = el(
    "select",
    { id: "use-task", onchange: (event) => { chosen.rows = panels[Number(event.target.value)]; chosen.most.clear(); redraw(); } },
    ...panels.map((rows, i) => el("option", { value: i }, panelName(rows[0]))),
  );
  const sliders = el("div", { class: "sliders" });
  const answer = el("div", { class: "answer", "aria-live": "polite" });

  const slider = (axis) => {
    const steps = distinct(chosen.rows.map((row) => row[axis.key]).filter(isNumber)).sort((a, b) => a - b);
    if (steps.length < 2) return null;
    const output = el("output", {}, "no limit");
    const move = (event) => {
      const step = Number(event.target.value);
      chosen.axis = axis;
      if (step === steps.length - 1) chosen.most.delete(axis.key);
      else chosen.most.set(axis.key, steps[step]);
      const text = chosen.most.has(axis.key) ? `at most ${number(steps[step], axis.digits)}` : "no limit";
      output.textContent = text;
      event.target.setAttribute("aria-valuetext", text);
      decide();
    };
    const input = el("input", {
      type: "range", min: 0, max: steps.length - 1, value: steps.length - 1, oninput: move, "data-limit": axis.key,
      "aria-label": axis.name, "aria-valuetext": "no limit",
    });
    return el("label", {}, el("span", {}, axis.name, ": ", output), input);
  };

  const decide = () => {
    const fits = (row) => [...chosen.most].every(([key, most]) => isNumber(row[key]) && row[key] <= most);
    const fitting = chosen.rows.filter(fits);
    const beyond = chosen.rows.filter((row) => !fits(row));
    const over = beyond.length ? el("p", { class: "sub" }, `Beyond a limit, or not measured: ${names(beyond)}.`) : null;
    if (!fitting.length) {
      answer.replaceChildren(...[el("h3", {}, "Nothing here keeps within these limits"), over].filter(Boolean));
      return;
    }
    const found = ranked(fitting);
    const [title, text] = advice(found, chosen.axis);
    const candidates = [found.best, ...found.alike, ...found.untested];
    const differ = distinct(fitting.map((row) => row.protocol)).length > 1;
    answer.replaceChildren(...[
      el("h3", {}, title), el("p", {}, text),
      differ ? el("p", {}, "They were not all trained alike: the notes below the table say how.") : null,
      candidateTable(candidates),
      candidates.length > MOST_CANDIDATES ? el("p", { class: "sub" }, `And ${number(candidates.length - MOST_CANDIDATES)} more with lower means.`) : null,
      found.worse.length ? el("p", { class: "sub" }, `Shown to be worse: ${names(found.worse)}.`) : null,
      over,
    ].filter(Boolean));
  };

  const redraw = () => {
    sliders.replaceChildren(...LIMITS.map(slider).filter(Boolean));
    decide();
  };
  byId("use").append(
    panelHead("use", "What should I use?",
      "Set what you can afford. Every pair of methods is tested, and p values are corrected for all pairs of the task.",
      el("label", { hidden: panels.length < 2 }, "Task", menu)),
    sliders, answer,
  );
  byId("use").hidden = false;
  redraw();
}
