// Views, the choices in the toolbar, and the address that restores both.

const VIEWS = ["overview", "board", "traces", "figures", "published", "help"];
const DRAW_VIEW = { board: drawBoard, traces: drawList, figures: drawFigures, published: drawPublished };

function show(view) {
  state.view = view;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== "view-" + view;
  for (const button of byId("views").children) {
    if (button.dataset.view === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  byId("unlisted").hidden = !(data.benchmarks.length && benchmark().unlisted && DRAW_VIEW[view]);
  if (data.benchmarks.length && DRAW_VIEW[view]) DRAW_VIEW[view]();
  document.title = "prmbench report" + (data.benchmarks.length && DRAW_VIEW[view] ? ": " + benchmarkName(benchmark()) : "");
}
function chooseBenchmark(index) {
  Object.assign(state, { benchmark: index, table: "", subset: "", protocol: "" });
  const runs = details().runs;
  byId("benchmark").value = String(index);
  byId("unlisted").textContent = "These runs are not listed on the leaderboard: " + benchmark().unlisted + ".";
  const subsets = [...new Set(details().traces.map((t) => t.subset))];
  fill(byId("subset"), [["", "all"], ...subsets.map((s) => [s, s])], "");
  fill(byId("run"), runs.map((r, i) => [String(i), r.model + " \u00b7 " + r.id.slice(0, 8)]), "0");
  chooseRun(0);
}
function openView(index, view) {
  chooseBenchmark(index);
  show(view);
  window.scrollTo(0, 0);
  updateAddress();
}

// --- from an address -----------------------------------------------------------------------------
function benchmarkIndex(params) {
  const index = data.benchmarks.findIndex((b) => benchmarkName(b) === params.get("benchmark"));
  if (index >= 0 || !params.has("trace") || !bulk) return index;
  return bulk.findIndex((b) => b.traces.some((t) => t.id === params.get("trace")));
}
function followAddress() {
  const params = new URLSearchParams(window.location.hash.slice(1));
  const index = benchmarkIndex(params), view = params.get("view") || (params.has("trace") ? "traces" : params.has("benchmark") ? "board" : "overview");
  if (!data.benchmarks.length) { show("overview"); return; }
  chooseBenchmark(Math.max(0, index));
  if (params.has("table")) state.table = params.get("table");
  if (params.has("run")) {
    const position = details().runs.findIndex((r) => r.id === params.get("run"));
    if (position >= 0) { byId("run").value = String(position); chooseRun(position); }
  }
  if (run() && run().protocols.some((p) => p.key === params.get("protocol"))) {
    state.protocol = params.get("protocol");
    byId("protocol").value = state.protocol;
  }
  if (params.has("trace")) Object.assign(state, { kind: "all", find: "", subset: "" });
  byId("find").value = state.find;
  show(VIEWS.includes(view) ? view : "overview");
  if (params.has("trace") && state.view === "traces") {
    const position = state.rows.findIndex((i) => details().traces[i].id === params.get("trace"));
    if (position >= 0) { select(position); byId("list").querySelector("[aria-current]").scrollIntoView({ block: "nearest" }); }
    else byId("trace-words").textContent = "This page does not hold the trace " + params.get("trace") + ". " + byId("trace-words").textContent;
  }
}

// --- wiring --------------------------------------------------------------------------------------
for (const button of byId("views").children) button.addEventListener("click", () => { show(button.dataset.view); updateAddress(); });
function onChange(id, update, draw) {
  byId(id).addEventListener(id === "find" ? "input" : "change", (event) => { update(event.target.value); draw(); updateAddress(); });
}
onChange("benchmark", (value) => chooseBenchmark(Number(value)), () => show(DRAW_VIEW[state.view] ? state.view : "board"));
onChange("run", (value) => chooseRun(Number(value)), drawList);
onChange("protocol", (value) => { state.protocol = value; }, drawList);
onChange("subset", (value) => { state.subset = value; }, drawList);
onChange("find", (value) => { state.find = value; }, drawList);
document.addEventListener("keydown", (event) => {
  if (state.view !== "traces" || event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) return;
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (step) { event.preventDefault(); move(step); }
  if (event.key === "/") { event.preventDefault(); byId("find").focus(); }
});
window.addEventListener("hashchange", followAddress);
byId("rule-list").replaceChildren(...Object.entries(data.rules).flatMap(([name, [title, explanation]]) => [el("dt", {}, title + " ", el("code", {}, name)), el("dd", {}, explanation)]));
fill(byId("benchmark"), data.benchmarks.map((b, i) => [String(i), benchmarkName(b)]), "0");
drawOverview(openView);
if (!data.benchmarks.length) byId("rule-words").textContent = "There is no run to show.";
followAddress();
document.documentElement.dataset.ready = "";
