// Builds the page from top to bottom.

function buildTheme() {
  const root = document.documentElement;
  const preferred = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const isDark = () => (root.dataset.theme || preferred()) === "dark";
  const button = byId("theme");
  const label = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
    button.setAttribute("aria-pressed", String(isDark()));
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  label();
}

buildTheme();
buildHead();
buildUse();
buildCards();
buildFilters();
buildScores();
buildTable();
buildComparisons();
buildClasses();
buildLines();
buildCosts();
buildPublished();
buildClaims();
buildDeviations();
buildNotes();
redraws.push(redrawTable);
let drawnWidth = null;
new ResizeObserver(() => {
  const width = document.documentElement.clientWidth;
  if (width === drawnWidth) return;
  drawnWidth = width;
  refresh();
}).observe(document.documentElement);
refresh();
