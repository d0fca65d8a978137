// Title, notices, summary cards.

const MOST_MISSING = 12;

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
  const statuses = Object.entries(origin.unfinished);
  const unfinished = statuses.map(([status, n]) => `${number(n)} ${status.replaceAll("_", " ")}`);
  if (unfinished.length) notices.push(`Left out, because they did not finish: ${unfinished.join(", ")}.`);
  if (origin.others > 0) {
    notices.push(`${plural(origin.others, "finished record")} left out: without a score, or not chosen by the study.`);
  }
  const missing = DATA.missing || [];
  if (missing.length) {
    const more = missing.length > MOST_MISSING ? `, and ${number(missing.length - MOST_MISSING)} more` : "";
    notices.push(`Not finished: ${missing.slice(0, MOST_MISSING).join(", ")}${more}.`);
  }
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
  const backbones = BACKBONES.length > 1 ? plural(BACKBONES.length, "backbone") : `on ${BACKBONES[0]}`;
  const cards = [
    card("records", [number(DATA.origin.runs)], more(seeds)),
    card("methods", [number(METHODS.length)], more(`${plural(TASKS.length, "task")}, ${backbones}`)),
  ];
  const panels = panelsOf(DATA.rows.filter((row) => isNumber(row.score))).filter((mine) => !larger(mine));
  // Of a task that not all methods have finished, no best is named.
  const complete = panels.filter((mine) => mine.every((row) => row.complete));
  byId("cards").append(...cards, ...complete.slice(0, 4).map(bestCard));
}

function bestCard(rows) {
  const best = bestOf(rows);
  const lines = [el("div", { class: "more" }, el("b", {}, best.method), `, ${number(best.params_trainable)} params`)];
  const close = rows.filter((row) => row.percent && row.score >= best.score - 1);
  const small = close.length ? close.reduce((a, b) => (b.params_trainable < a.params_trainable ? b : a)) : best;
  if (small !== best) {
    const params = `, ${number(small.params_trainable)} params`;
    lines.push(el("div", { class: "more" }, "within 1 point: ", el("b", {}, small.method), params));
  }
  const spread = isNumber(best.sd) ? [el("small", {}, ` ± ${scoreText(best, best.sd)}`)] : [];
  return card(
    `${best.n > 1 ? "best mean" : "best"}, ${panelName(best)} (${scoreName(best)})`,
    [scoreText(best, best.score), ...spread],
    el("div", {}, ...lines), "card best-card",
  );
}
