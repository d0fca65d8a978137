// The filters; the one of methods is also the legend of the plots.

function chips(kind, name, values, nameOf = String) {
  const boxes = values.map((value) => {
    const change = (event) => {
      state.off[kind][event.target.checked ? "delete" : "add"](value);
      refresh();
    };
    const input = el("input", { type: "checkbox", checked: true, onchange: change, "data-filter": kind, value });
    const m = kind === "method" ? METHOD_NUMBER.get(value) : null;
    const mark = m === null ? null : methodMark(m);
    return el("label", { class: "chip", "data-m": m }, input, mark, el("span", { class: "text" }, nameOf(value)));
  });
  const setAll = (on) => () => {
    for (const input of byId("filters").querySelectorAll(`[data-filter="${kind}"]`)) input.checked = on;
    state.off[kind] = new Set(on ? [] : values);
    refresh();
  };
  const plain = { type: "button", class: "button plain" };
  const all = el("button", { ...plain, onclick: setAll(true), "aria-label": `All ${name}` }, "all");
  const none = el("button", { ...plain, onclick: setAll(false), "aria-label": `No ${name}` }, "none");
  const both = values.length > 3 ? el("div", {}, all, none) : null;
  return el(
    "div", { class: "group", role: "group", "aria-label": name },
    el("div", { class: "group-head" }, name, both), el("div", { class: "chips" }, ...boxes),
  );
}

function buildFilters() {
  const search = el("input", {
    type: "search", id: "search", placeholder: "Search methods, tasks",
    "aria-label": "Search methods, tasks, backbones",
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
    BACKBONES.length > 1 ? chips("backbone", "Backbones", BACKBONES) : null,
    SIZES.length > 1 ? chips("rows", "Train rows", SIZES, number) : null, chips("method", "Methods", METHODS)];
  byId("filters").append(
    el("div", { class: "search" }, search, foot), el("div", { class: "groups" }, ...groups.filter(Boolean)),
  );
  redraws.push((rows) => {
    byId("count").textContent = `${number(rows.length)} of ${plural(DATA.rows.length, "row")}`;
  });
}
