"use strict";
// Creates elements and formats numbers. Data enters the page only through textContent and setAttribute.

const MISSING = "–";
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const byId = (id) => document.getElementById(id);

const formats = new Map();

function number(value, digits = 0) {
  if (value === null || value === undefined) return MISSING;
  if (!formats.has(digits)) {
    // Halves are rounded to even digits, as in the tables of the terminal.
    const rounding = { minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" };
    formats.set(digits, new Intl.NumberFormat("en", rounding));
  }
  return formats.get(digits).format(value).replace("-", "−");
}

// Enough digits for a tick or a tooltip, whatever the size.
function brief(value) {
  if (value === null || value === undefined) return MISSING;
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e15)) return value.toExponential(1);
  const digits = size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return number(value, digits);
}

function tickText(value) {
  const size = Math.abs(value);
  for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${+(value / unit).toPrecision(4)}${name}`;
  }
  return `${+value.toPrecision(6)}`.replace("-", "−");
}

const scoreDigits = (row) => (row.percent ? 1 : 4);
const scoreText = (row, value) => number(value, scoreDigits(row));

function spreadText(row, mean, sd) {
  return scoreText(row, mean) + (sd === null || sd === undefined ? "" : ` ± ${scoreText(row, sd)}`);
}

const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
