// Shared by all parts of the page: the data, DOM helpers, tooltips and the address.
// No number is computed here: predictions, thresholds and intervals come from prmbench. Texts of traces and names of
// models enter the page through text nodes and attributes only.
const byId = (id) => document.getElementById(id);
const DASH = "\u2013";
const data = JSON.parse(byId("data").textContent);
const bulk = await unpacked(); // traces and figures of each benchmark; null in a browser that cannot gunzip
const state = { view: "overview", benchmark: 0, table: "", run: 0, protocol: "", subset: "", kind: "all", find: "", position: 0, rows: [] };

async function unpacked() {
  if (!("DecompressionStream" in window)) return null;
  const bytes = Uint8Array.from(atob(byId("bulk").textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
const benchmark = () => data.benchmarks[state.benchmark];
const EMPTY = { figures: [], traces: [], runs: [], texts: {}, total: 0 };
const details = () => (bulk ? bulk[state.benchmark] : EMPTY);
const benchmarkName = (b) => b.name + (b.unlisted ? " (not listed)" : "");
const OLD_BROWSER = "This browser cannot unpack what this view shows; any browser of 2023 or later can.";

// --- nodes ---------------------------------------------------------------------------------------
function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (name === "class") node.className = value || "";
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}
function svg(tag, props, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
}
const own = (table, name) => (Object.hasOwn(table || {}, name) ? table[name] : undefined); // names may be "constructor"
const percent = (x) => (x === null ? DASH : (100 * x).toFixed(1));
const digits = (x) => (Math.round(10 * x) / 10 === x ? x.toFixed(1) : x.toFixed(2));
const number = (x) => (Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.001) ? x.toExponential(2) : x.toPrecision(4)).replace("-", "\u2212");
const heading = (column) => (column.startsWith("avg[") ? "avg of " + column.slice(4, -1).split(",").join(", ") : column);

// --- tooltips of what is pointed at or focused ----------------------------------------------------
// An element's data-tip holds its tooltip; assistive technology reads the same from aria-description.
const tooltip = (words) => (words ? { "data-tip": words, "aria-description": words.replace(/\n/g, " ") } : {});
function key(name) {
  const words = data.protocols[name];
  return words ? el("button", { type: "button", class: "key", ...tooltip(words) }, el("code", {}, name)) : el("code", {}, name);
}
let tooltipOwner = null;
function showTooltip(node) {
  const box = byId("tip");
  tooltipOwner = node;
  box.hidden = !node;
  if (!node) return;
  box.textContent = node.dataset.tip;
  const anchor = node.getBoundingClientRect(), size = box.getBoundingClientRect(), pageWidth = document.documentElement.clientWidth;
  const below = anchor.bottom + size.height + 12 < window.innerHeight;
  box.style.left = Math.max(8, Math.min(anchor.left, pageWidth - size.width - 8)) + "px";
  box.style.top = (below ? anchor.bottom + 6 : Math.max(4, anchor.top - size.height - 6)) + "px";
}
const elementWithTooltip = (event) => (event.target.closest ? event.target.closest("[data-tip]") : null);
for (const name of ["pointerover", "focusin", "click"]) {
  document.addEventListener(name, (event) => {
    const node = elementWithTooltip(event);
    if (node) showTooltip(node);
    else if (!(event.target.closest && event.target.closest("#tip"))) showTooltip(null);
  });
}
document.addEventListener("focusout", () => showTooltip(null));
document.addEventListener("scroll", () => { if (tooltipOwner) showTooltip(null); }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") showTooltip(null); });

// --- the address: #benchmark=...&view=...&table=... or #trace=... --------------------------------
function updateAddress() {
  const parts = new URLSearchParams();
  if (data.benchmarks.length) parts.set("benchmark", benchmarkName(benchmark()));
  parts.set("view", state.view);
  if (state.view === "board" && state.table) parts.set("table", state.table);
  if (state.view === "traces" && details().runs.length) {
    parts.set("run", details().runs[state.run].id);
    parts.set("protocol", state.protocol);
    if (state.rows.length) parts.set("trace", details().traces[state.rows[state.position]].id);
  }
  window.history.replaceState(null, "", "#" + parts);
}
