// The six plots: scores against costs, learning curves, scores by training rows, tuning curves, variability by layer, ROC
// curves.

const MOST_MULTIPLES = 12;
// Of a panel with more points than this, only the tooltips have names.
const MOST_NAMES = 16;
const NAME_DISTANCES = [0, 12, 26, 42];
const NAME_SIDES = [
  [1, 0, "start"], [-1, 0, "end"], [0, -1, "middle"], [0, 1, "middle"],
  [0.8, -0.8, "start"], [-0.8, -0.8, "end"], [0.8, 0.8, "start"], [-0.8, 0.8, "end"],
];
// Fewer seeds have no interval.
const LEAST_VALUES = 3;
const isNumber = (value) => value !== null && value !== undefined;
const axisOf = (key) => DATA.axes.find((axis) => axis.key === key);
const scoreName = (row) => row.metric + (row.percent ? ", %" : "");

// How many larger numbers of training rows the panel's task has.
const larger = ([row]) => [...sizesOf.get(row.task)].filter((size) => size > row.rows).length;

// Groups rows into panels; those trained on the most rows of their task come first.
function panelsOf(rows) {
  const panels = new Map();
  for (const row of rows) {
    const key = panelKey(row);
    if (!panels.has(key)) panels.set(key, []);
    panels.get(key).push(row);
  }
  return [...panels.values()].sort((a, b) => larger(a) - larger(b));
}

function scoreLines(row) {
  const lines = [[scoreName(row), spreadText(row, row.score, row.sd)], ["seeds", number(row.n)]];
  if (row.n > 1) lines.push(["median", scoreText(row, row.median)]);
  if (isNumber(row.low)) lines.push(["95 % interval", `${scoreText(row, row.low)} – ${scoreText(row, row.high)}`]);
  return lines;
}

function rowTip(row, extra) {
  return () => ({
    m: row.m,
    title: row.method,
    under: `${row.task}, ${row.backbone}, ${plural(row.rows, "training row")}`,
    lines: [...scoreLines(row), ["trained params", number(row.params_trainable)], ...extra,
      ...(row.improving ? [["still improving", "at the last evaluation"]] : [])],
  });
}

// Indices of the points on the Pareto front (x: less is better, y: more is better), cheapest first.
function paretoFront(points) {
  const order = points.map((_, i) => i).sort((a, b) => points[a][0] - points[b][0] || points[b][1] - points[a][1]);
  let best = -Infinity;
  return order.filter((i) => points[i][1] > best && ((best = points[i][1]), true));
}

function redrawScores(rows) {
  const axis = axisOf(state.axis);
  const holder = byId("multiples");
  const known = rows.filter((row) => isNumber(row.score) && isNumber(row[axis.key]));
  const panels = panelsOf(known);
  const shown = panels.slice(0, MOST_MULTIPLES);
  const columns = Math.max(1, Math.min(shown.length, Math.floor((holder.clientWidth + 24) / 380), 3));
  holder.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  const charts = shown.map(() => el("div", { class: "chart" }));
  holder.replaceChildren(
    ...shown.map((mine, index) =>
      el("figure", {},
        el("figcaption", {}, panelName(mine[0]), el("span", {}, ` · ${mine[0].split}`)),
        charts[index]),
    ),
    ...(shown.length ? [] : [el("p", { class: "nothing" }, "No row here has both a score and this cost.")]),
  );
  byId("more-panels").textContent =
    panels.length > shown.length ? `The first ${shown.length} of ${panels.length} tasks; filter for the others.` : "";
  shown.forEach((mine, index) => drawScores(charts[index], mine, axis));
}

function drawScores(container, rows, axis) {
  const spread = (row) => (row.n >= LEAST_VALUES ? row.sd || 0 : 0);
  const ends = rows.flatMap((row) => [row.score - spread(row), row.score + spread(row)]);
  const plot = drawFrame(container, {
    x: scaleOf(rows.map((row) => row[axis.key]), { log: axis.log }),
    y: scaleOf(ends, { least: rows[0].percent ? 1 : 0 }),
    xName: axis.name,
    yName: scoreName(rows[0]),
    label: `${panelName(rows[0])}: ${scoreName(rows[0])} against ${axis.name}`,
    height: container.clientWidth > 700 ? 380 : 300,
  });
  const at = (row) => [plot.at.x(row[axis.key]), plot.at.y(row.score)];
  const [dx, dy] = [axis.less_is_better ? 1 : -1, rows[0].percent ? 1 : -1];
  // A method that was trained for longer or on other rows is on no front with the others.
  const fronts = distinct(rows.map((row) => row.protocol)).map((protocol) => {
    const alike = rows.filter((row) => row.protocol === protocol);
    return paretoFront(alike.map((row) => [dx * row[axis.key], dy * row.score])).map((index) => alike[index]);
  });
  const front = fronts.flat();
  for (const mine of fronts.filter((some) => some.length > 1)) {
    const corners = mine.map(at).flatMap(([x, y], i, all) => (i ? [[x, all[i - 1][1]], [x, y]] : [[x, y]]));
    plot.marks.before(svg("path", { class: "front", d: pathOf(corners) }));
  }
  for (const row of rows.filter((item) => item.sd && item.n >= LEAST_VALUES)) {
    const [x] = at(row);
    const ends = [row.score - row.sd, row.score + row.sd].map(plot.at.y);
    const bar = { class: "spread", "data-m": row.m, x1: x, x2: x, y1: ends[0], y2: ends[1] };
    plot.marks.append(svg("line", { ...bar, style: `stroke: ${colourOf(row.m)}` }));
  }
  for (const row of rows) {
    const [x, y] = at(row);
    const cost = number(row[axis.key], axis.digits);
    const extra = axis.key === "params_trainable" ? [] : [[axis.name.replace(" (more is better)", ""), cost]];
    const text = `${row.method}: ${spreadText(row, row.score, row.sd)}, ${axis.name} ${cost}`;
    drawPoint(plot, { m: row.m, x, y, text, tip: rowTip(row, extra) });
  }
  if (rows.length <= MOST_NAMES) namePoints(plot, [...front, ...rows.filter((row) => !front.includes(row))], at);
}

// Writes the name of each point beside it, those of the first rows first; one that finds no room close by is joined to
// its point by a line, and one that finds none at all is left to the tooltip.
function namePoints(plot, rows, at) {
  const taken = rows.map(at).map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]);
  const hits = (a) => taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
  const places = NAME_DISTANCES.flatMap((far) => NAME_SIDES.map((side) => [far, ...side]));
  for (const row of rows) {
    const [x, y] = at(row);
    const width = row.method.length * 6.6;
    for (const [far, dx, dy, anchor] of places) {
      const [tx, ty] = [x + dx * (10 + far), y + 4 + dy * (13 + far)];
      const from = anchor === "start" ? tx : anchor === "end" ? tx - width : tx - width / 2;
      const box = [from, ty - 10, from + width, ty + 3];
      const inside = from >= plot.at.left && from + width <= plot.at.right + 8 && box[1] > 0 && ty < plot.at.bottom;
      if (!inside || hits(box)) continue;
      taken.push(box);
      if (far) {
        const end = { x2: Math.min(Math.max(x, from), from + width), y2: Math.min(Math.max(y, box[1]), box[3]) };
        plot.marks.prepend(svg("line", { class: "leader", "data-m": row.m, x1: x, y1: y, ...end }));
      }
      const place = { x: tx, y: ty, "text-anchor": anchor };
      plot.marks.append(svg("text", { class: "name", "data-m": row.m, ...place }, row.method));
      break;
    }
  }
}

function drawLine(plot, m, points, faint = false) {
  const style = `stroke: ${colourOf(m)}`;
  plot.marks.append(svg("path", { class: faint ? "line faint" : "line", "data-m": m, d: pathOf(points), style }));
}

function drawBand(plot, m, low, high) {
  const d = `${pathOf([...low, ...high.slice().reverse()])}Z`;
  plot.marks.append(svg("path", { class: "band", "data-m": m, d, style: `fill: ${colourOf(m)}` }));
}

// A line with a band of one sd; points are {x, mean, sd, text, tip}.
function drawSeries(plot, m, points, { marker = 4, most = 14 } = {}) {
  const at = (point, value) => [plot.at.x(point.x), plot.at.y(value)];
  if (points.some((point) => point.sd)) {
    drawBand(plot, m, points.map((p) => at(p, p.mean - p.sd)), points.map((p) => at(p, p.mean + p.sd)));
  }
  drawLine(plot, m, points.map((point) => at(point, point.mean)));
  const stride = Math.ceil(points.length / most);
  points.forEach((point, index) => {
    if ((points.length - 1 - index) % stride) return;
    const [x, y] = at(point, point.mean);
    drawPoint(plot, { m, x, y, r: marker, text: point.text, tip: point.tip });
  });
}

function seriesScale(series, options) {
  return scaleOf(series.flatMap(({ points }) => points.flatMap((p) => [p.mean - p.sd, p.mean + p.sd])), options);
}

function redrawHistory(container, rows) {
  const series = rows.map((row) => ({ row, points: row.history.map((entry) => historyPoint(row, entry)) }));
  const plot = drawFrame(container, {
    x: scaleOf(series.flatMap(({ points }) => points.map((point) => point.x)), { pad: 0.04, whole: true }),
    y: seriesScale(series, { least: rows[0].percent ? 1 : 0 }),
    xName: "updates",
    yName: `${rows[0].selection_split} ${scoreName(rows[0])}`,
    label: `${panelName(rows[0])}: learning curves`,
  });
  for (const { row, points } of series) drawSeries(plot, row.m, points);
}

function historyPoint(row, [step, epoch, mean, sd, n]) {
  const text = spreadText(row, mean, n > 1 ? sd : null);
  const lines = [["updates", number(step)], ["epoch", brief(epoch)], [scoreName(row), text], ["seeds", number(n)]];
  const tip = () => ({ m: row.m, title: row.method, under: `${panelName(row)}, ${row.selection_split}`, lines });
  return { x: step, mean, sd: n >= LEAST_VALUES ? sd : 0, text: `${row.label}, ${number(step)} updates: ${text}`, tip };
}

function redrawRowsCurves(container, curves) {
  const first = curves[0].shown[0];
  const series = curves.map(({ shown }) => ({
    m: shown[0].m,
    points: shown.map((row) => ({
      x: row.rows,
      mean: row.score,
      sd: row.n >= LEAST_VALUES ? row.sd || 0 : 0,
      text: `${row.label}: ${spreadText(row, row.score, row.sd)}`,
      tip: rowTip(row, []),
    })),
  }));
  const plot = drawFrame(container, {
    x: scaleOf(series.flatMap(({ points }) => points.map((point) => point.x)), { log: true }),
    y: seriesScale(series, { least: first.percent ? 1 : 0 }),
    xName: "training rows",
    yName: scoreName(first),
    label: "score by number of training rows",
  });
  for (const { m, points } of series) drawSeries(plot, m, points, { marker: 5 });
}

// Tuning curves of a search on one task. A band is drawn as far as it has an upper end, its lower end everywhere.
function redrawTuning(container, curves) {
  const [first] = curves;
  const trials = curves.flatMap(({ points }) => points.map(([n]) => n));
  const plot = drawFrame(container, {
    x: scaleOf(trials, { pad: 0.04, whole: true }),
    y: scaleOf(curves.flatMap(({ points }) => points.flatMap(([, score, low]) => [score, low])).filter(isNumber),
      { least: first.percent ? 1 : 0 }),
    xName: "trials, of which the best on the selection rows is taken",
    yName: first.metric + (first.percent ? ", %" : ", negated"),
    label: `${first.task}: tuning curves`,
  });
  const text = (value) => scoreText(first, value);
  for (const { method, task, points } of curves) {
    const m = METHOD_NUMBER.get(method);
    const at = (n, value) => [plot.at.x(n), Math.min(Math.max(plot.at.y(value), plot.at.top), plot.at.bottom)];
    const known = points.filter(([, score]) => isNumber(score));
    const above = known.filter(([, , low]) => isNumber(low));
    const closed = above.filter(([, , , high]) => isNumber(high));
    if (closed.length > 1) {
      drawBand(plot, m, closed.map(([n, , low]) => at(n, low)), closed.map(([n, , , high]) => at(n, high)));
    }
    if (above.length) drawLine(plot, m, above.map(([n, , low]) => at(n, low)), true);
    if (known.length) drawLine(plot, m, known.map(([n, score]) => at(n, score)));
    const end = (value) => (isNumber(value) ? text(value) : "unknown");
    for (const [n, score, low, high] of known) {
      const lines = [["trials", number(n)], [`median ${first.metric}`, text(score)], ["80 % band", `${end(low)} – ${end(high)}`]];
      const tip = () => ({ m, title: method, under: task, lines });
      const [x, y] = at(n, score);
      drawPoint(plot, { m, x, y, r: 4, text: `${method}, best of ${number(n)} trials: ${text(score)}`, tip });
    }
  }
}

// One score on one task: how many report rows are kept when that share of the rows out of distribution passes.
function redrawRoc(container, items) {
  const percent = scaleOf([0, 100], { pad: 0.02 });
  const plot = drawFrame(container, {
    x: percent,
    y: percent,
    xName: "false positives: out of distribution, %",
    yName: "true positives: report rows, %",
    label: `${panelName(items[0].row)}: ROC curves by ${items[0].score}`,
  });
  const diagonal = [[0, 0], [100, 100]].map(([x, y]) => [plot.at.x(x), plot.at.y(y)]);
  plot.marks.append(svg("path", { class: "front", d: pathOf(diagonal) }));
  for (const { row, score } of items) {
    const points = row.roc[score].map(([x, mean, sd]) => {
      const lines = [["false positives, %", number(x, 0)], ["true positives, %", number(mean, 1)],
        ["AUROC, %", number(row[`ood_auroc_${score}`], 1)], ["seeds", number(row.n)]];
      const tip = () => ({ m: row.m, title: row.label, under: `${panelName(row)}, ${score}`, lines });
      return { x, mean, sd, text: `${row.label}: ${number(mean, 1)} % at ${number(x, 0)} %`, tip };
    });
    drawSeries(plot, row.m, points, { marker: 3, most: 10 });
  }
}

function redrawVariability(container, rows) {
  const positive = (value) => isNumber(value) && value > 0;
  const values = rows.flatMap((row) => [...row.variability.values, ...row.variability.shuffled].filter(positive));
  const layers = Math.max(...rows.map((row) => row.variability.values.length));
  const plot = drawFrame(container, {
    x: scaleOf([1, layers], { whole: true }),
    y: scaleOf(values.length ? values : [1], { log: true }),
    xName: "layer",
    yName: "variability ν",
    label: `${panelName(rows[0])}: variability by layer`,
  });
  for (const row of rows) {
    const { values: own, shuffled, bottom, top } = row.variability;
    const at = (list) => list.map((value, i) => [i + 1, value]).filter(([, value]) => positive(value));
    const place = ([layer, value]) => [plot.at.x(layer), plot.at.y(value)];
    const [from, to] = [plot.at.x(bottom - 0.5), plot.at.x(top + 0.5)];
    const area = { x: from, y: plot.at.top, width: to - from, height: plot.at.bottom - plot.at.top };
    plot.marks.append(svg("rect", { class: "adapted", "data-m": row.m, ...area, style: `fill: ${colourOf(row.m)}` }));
    if (shuffled.length) drawLine(plot, row.m, at(shuffled).map(place), true);
    drawLine(plot, row.m, at(own).map(place));
    for (const [layer, value] of at(own)) {
      const [x, y] = place([layer, value]);
      const control = ["ν, shuffled labels", brief(shuffled[layer - 1])];
      const lines = [["layer", number(layer)], ["ν", brief(value)], control];
      const under = `${row.task}, adapts layers ${bottom}–${top}`;
      const tip = () => ({ m: row.m, title: row.label, under, lines });
      drawPoint(plot, { m: row.m, x, y, r: 4.5, text: `${row.label}, layer ${layer}: ${brief(value)}`, tip });
    }
  }
}
