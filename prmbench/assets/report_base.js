// What every part of the page shares: the data, nodes, words that show where a reader points, the address.
// Decides no number: predictions, thresholds and intervals come from prmbench. Texts of traces and names of models
// enter the page through text nodes and attributes only.
const byId = (id) => document.getElementById(id);
const DASH = "\u2013";
const data = JSON.parse(byId("data").textContent);
const bulk = await unpacked(); // traces and figures of each benchmark; null in a browser that cannot gunzip
const state = { view: "overview", bench: 0, table: "", run: 0, protocol: "", subset: "", kind: "all", find: "", at: 0, rows: [] };

async function unpacked() {
  if (!("DecompressionStream" in window)) return null;
  const bytes = Uint8Array.from(atob(byId("bulk").textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
const bench = () => data.benchmarks[state.bench];
const EMPTY = { figures: [], traces: [], runs: [], texts: {}, total: 0 };
const seen = () => (bulk ? bulk[state.bench] : EMPTY);
const benchName = (b) => b.name + (b.unlisted ? " (not listed)" : "");
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
const percent = (x) => (x === null ? DASH : (100 * x).toFixed(1));
const digits = (x) => (Math.round(10 * x) / 10 === x ? x.toFixed(1) : x.toFixed(2));
const number = (x) => (Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.001) ? x.toExponential(2) : x.toPrecision(4)).replace("-", "\u2212");
const heading = (column) => (column.startsWith("avg[") ? "avg of " + column.slice(4, -1).split(",").join(", ") : column);

// --- words for what is pointed at or focused -----------------------------------------------------
// An element says them by data-tip; assistive technology reads the same from aria-description.
const tip = (words) => (words ? { "data-tip": words, "aria-description": words.replace(/\n/g, " ") } : {});
function key(name) {
  const words = data.protocols[name];
  return words ? el("button", { type: "button", class: "key", ...tip(words) }, el("code", {}, name)) : el("code", {}, name);
}
let pointed = null;
function showTip(node) {
  const box = byId("tip");
  pointed = node;
  box.hidden = !node;
  if (!node) return;
  box.textContent = node.dataset.tip;
  const at = node.getBoundingClientRect(), size = box.getBoundingClientRect(), room = document.documentElement.clientWidth;
  const below = at.bottom + size.height + 12 < window.innerHeight;
  box.style.left = Math.max(8, Math.min(at.left, room - size.width - 8)) + "px";
  box.style.top = (below ? at.bottom + 6 : Math.max(4, at.top - size.height - 6)) + "px";
}
const tipped = (event) => (event.target.closest ? event.target.closest("[data-tip]") : null);
for (const name of ["pointerover", "focusin", "click"]) {
  document.addEventListener(name, (event) => {
    const node = tipped(event);
    if (node) showTip(node);
    else if (!(event.target.closest && event.target.closest("#tip"))) showTip(null);
  });
}
document.addEventListener("focusout", () => showTip(null));
document.addEventListener("scroll", () => { if (pointed) showTip(null); }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") showTip(null); });

// --- the address: #benchmark=...&view=...&table=... or #trace=... --------------------------------
function setAddress() {
  const parts = new URLSearchParams();
  if (data.benchmarks.length) parts.set("benchmark", benchName(bench()));
  parts.set("view", state.view);
  if (state.view === "board" && state.table) parts.set("table", state.table);
  if (state.view === "traces" && seen().runs.length) {
    parts.set("run", seen().runs[state.run].id);
    parts.set("protocol", state.protocol);
    if (state.rows.length) parts.set("trace", seen().traces[state.rows[state.at]].id);
  }
  window.history.replaceState(null, "", "#" + parts);
}
