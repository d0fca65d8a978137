// The parts of a plot: markers, scales, axes.

// 7 colours and 8 shapes: 56 methods differ in at least one of them.
const COLOURS = 7;
const SHAPES = [
  (r) => `M${-r},0A${r},${r} 0 1 1 ${r},0A${r},${r} 0 1 1 ${-r},0Z`,
  (r) => `M${-r * 0.88},${-r * 0.88}H${r * 0.88}V${r * 0.88}H${-r * 0.88}Z`,
  (r) => `M0,${-r * 1.2}L${r * 1.15},${r * 0.85}H${-r * 1.15}Z`,
  (r) => `M0,${-r * 1.3}L${r * 1.15},0L0,${r * 1.3}L${-r * 1.15},0Z`,
  (r) => `M0,${r * 1.2}L${r * 1.15},${-r * 0.85}H${-r * 1.15}Z`,
  (r) => cross(r * 1.2, r * 0.42),
  (r) => star(r * 1.35, r * 0.6),
  (r) => `M${-r * 1.2},${-r * 0.6}H${r * 1.2}V${r * 0.6}H${-r * 1.2}Z`,
];

function cross(r, w) {
  return `M${-w},${-r}H${w}V${-w}H${r}V${w}H${w}V${r}H${-w}V${w}H${-r}V${-w}H${-w}Z`;
}

function star(outer, inner) {
  const corners = Array.from({ length: 10 }, (_, i) => {
    const [r, angle] = [i % 2 ? inner : outer, (i * Math.PI) / 5];
    return `${(r * Math.sin(angle)).toFixed(2)},${(-r * Math.cos(angle)).toFixed(2)}`;
  });
  return `M${corners.join("L")}Z`;
}

const colourOf = (m) => `var(--c${m % COLOURS})`;
const shapeOf = (m, r) => SHAPES[m % SHAPES.length](r);

function methodMark(m) {
  return svg(
    "svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" },
    svg("path", { d: shapeOf(m, 4.6), style: `fill: ${colourOf(m)}` }),
  );
}

function niceTicks(low, high, count, least) {
  const raw = Math.max((high - low) / Math.max(1, count), least);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const ticks = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    ticks.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  }
  return ticks;
}

function logTicks(low, high, count) {
  const ticks = [];
  const factors = Math.log10(high / low) > 2.2 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) ticks.push(value);
    }
  }
  const stride = Math.ceil(ticks.length / Math.max(2, count));
  return ticks.filter((_, index) => index % stride === 0);
}

// A scale over the values, padded so that no marker lies on an axis.
function scaleOf(values, { log = false, whole = false, pad = 0.08, least = 0 } = {}) {
  const turn = log ? Math.log10 : (value) => value;
  let [low, high] = [Math.min(...values), Math.max(...values)].map(turn);
  const gap = Math.max(high - low, log ? 0.2 : least || Math.abs(high) * 0.02 || 1);
  const middle = (low + high) / 2;
  [low, high] = [middle - gap * (0.5 + pad), middle + gap * (0.5 + pad)];
  const back = log ? (value) => 10 ** value : (value) => value;
  return {
    log,
    share: (value) => (turn(value) - low) / (high - low),
    ticks: (count) => (log ? logTicks : niceTicks)(back(low), back(high), count, whole ? 1 : 0),
  };
}

// Draws axes and grid; returns the positions of values and the layer for marks.
function drawFrame(container, { x, y, xName, yName, label, height = 300 }) {
  const width = Math.max(240, Math.floor(container.clientWidth));
  const yTicks = y.ticks(Math.floor(height / 48));
  const left = 30 + Math.max(...yTicks.map((tick) => tickText(tick).length), 2) * 7;
  const [right, top, bottom] = [12, 12, 44];
  const [inner, tall] = [width - left - right, height - top - bottom];
  const at = {
    x: (value) => left + x.share(value) * inner,
    y: (value) => top + (1 - y.share(value)) * tall,
    left, right: width - right, top, bottom: height - bottom,
  };
  const box = `0 0 ${width} ${height}`;
  const root = svg("svg", { viewBox: box, height, role: "group", "aria-label": label });
  for (const tick of yTicks) {
    root.append(
      svg("line", { class: "grid", x1: left, x2: at.right, y1: at.y(tick), y2: at.y(tick) }),
      svg("text", { class: "tick", x: left - 7, y: at.y(tick) + 4, "text-anchor": "end" }, tickText(tick)),
    );
  }
  for (const tick of x.ticks(Math.floor(inner / 70))) {
    root.append(
      svg("line", { class: "grid", x1: at.x(tick), x2: at.x(tick), y1: top, y2: at.bottom }),
      svg("text", { class: "tick", x: at.x(tick), y: at.bottom + 17, "text-anchor": "middle" }, tickText(tick)),
    );
  }
  const middle = (top + at.bottom) / 2;
  const centred = { "text-anchor": "middle" };
  root.append(
    svg("line", { class: "base", x1: left, x2: at.right, y1: at.bottom, y2: at.bottom }),
    svg("text", { class: "axis-name", x: (left + at.right) / 2, y: height - 6, ...centred }, xName),
    svg("text", { class: "axis-name", transform: `translate(11 ${middle}) rotate(-90)`, ...centred }, yName),
  );
  const marks = svg("g", { class: "marks" });
  root.append(marks, svg("g", { class: "over", "aria-hidden": "true" }));
  container.replaceChildren(root);
  return { root, marks, at };
}

// Draws a marker with a tooltip; the arrow keys move from one to the next.
function drawPoint(plot, { m, x, y, r = 5.5, text, tip }) {
  const first = !plot.root.querySelector(".pt");
  const point = svg(
    "g",
    {
      class: "pt", "data-m": m, transform: `translate(${x} ${y})`, tabindex: first ? 0 : -1,
      role: "img", "aria-label": text,
    },
    svg("circle", { class: "hit", r: Math.max(10, r + 4) }),
    svg("path", { class: "shape", d: shapeOf(m, r), style: `fill: ${colourOf(m)}` }),
  );
  tips.set(point, tip);
  plot.marks.append(point);
}

const pathOf = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
