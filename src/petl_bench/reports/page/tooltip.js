// The tooltip of the mark under the pointer, and the events that highlight and pin methods.

const tips = new WeakMap();

function showTip(target, x, y) {
  const tip = tips.get(target)();
  const box = byId("tooltip");
  box.replaceChildren(
    el("div", { class: "title" }, methodMark(tip.m), tip.title),
    el("div", { class: "under" }, tip.under),
    el("dl", {}, ...tip.lines.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
  );
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const left = x + 16 + width > innerWidth - 8 ? x - 16 - width : x + 16;
  const top = Math.min(y + 12, innerHeight - height - 8);
  box.style.transform = `translate(${Math.max(8, left)}px, ${Math.max(8, top)}px)`;
}

function hideTip() {
  byId("tooltip").hidden = true;
}

function pointed(event) {
  return event.target instanceof Element ? event.target.closest("[data-m]") : null;
}

document.addEventListener("pointerover", (event) => {
  const target = pointed(event);
  hover(target ? Number(target.dataset.m) : null, target);
  if (target && tips.has(target)) showTip(target, event.clientX, event.clientY);
  else hideTip();
});
document.documentElement.addEventListener("pointerleave", () => {
  hover(null);
  hideTip();
});
document.addEventListener("focusin", (event) => {
  const target = pointed(event);
  if (!target || !target.matches(":focus-visible")) return;
  hover(Number(target.dataset.m), target);
  if (!tips.has(target)) return;
  const box = target.getBoundingClientRect();
  showTip(target, box.right, box.bottom);
});
document.addEventListener("focusout", () => {
  hover(null);
  hideTip();
});
document.addEventListener("scroll", hideTip, { passive: true, capture: true });
document.addEventListener("click", (event) => {
  const target = pointed(event);
  if (target && target.matches(".pt, .pin, tr")) pin(Number(target.dataset.m));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    state.pinned = null;
    hover(null);
    link();
    hideTip();
    return;
  }
  const point = event.target instanceof Element ? event.target.closest(".pt") : null;
  if (!point) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pin(Number(point.dataset.m));
  }
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const points = [...point.closest("svg").querySelectorAll(".pt")];
  const next = points[(points.indexOf(point) + step + points.length) % points.length];
  point.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
});
