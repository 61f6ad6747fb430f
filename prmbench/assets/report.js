// Views, what is chosen in the toolbar, and the address that leads back here.

const VIEWS = ["overview", "board", "traces", "figures", "published", "help"];
const DRAW = { board: drawBoard, traces: drawList, figures: drawFigures, published: drawPublished };

function show(view) {
  state.view = view;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== "view-" + view;
  for (const button of byId("views").children) {
    if (button.dataset.view === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  byId("unlisted").hidden = !(data.benchmarks.length && bench().unlisted && DRAW[view]);
  if (data.benchmarks.length && DRAW[view]) DRAW[view]();
  document.title = "prmbench report" + (data.benchmarks.length && DRAW[view] ? ": " + benchName(bench()) : "");
}
function chooseBenchmark(index) {
  Object.assign(state, { bench: index, table: "", subset: "", protocol: "" });
  const runs = seen().runs;
  byId("benchmark").value = String(index);
  byId("unlisted").textContent = "These runs are not listed on the leaderboard: " + bench().unlisted + ".";
  const subsets = [...new Set(seen().traces.map((t) => t.subset))];
  fill(byId("subset"), [["", "all"], ...subsets.map((s) => [s, s])], "");
  fill(byId("run"), runs.map((r, i) => [String(i), r.model + " \u00b7 " + r.id.slice(0, 8)]), "0");
  chooseRun(0);
}
function go(index, view) {
  chooseBenchmark(index);
  show(view);
  window.scrollTo(0, 0);
  setAddress();
}

// --- from an address -----------------------------------------------------------------------------
function benchmarkOf(asked) {
  const named = data.benchmarks.findIndex((b) => benchName(b) === asked.get("benchmark"));
  if (named >= 0 || !asked.has("trace") || !bulk) return named;
  return bulk.findIndex((b) => b.traces.some((t) => t.id === asked.get("trace")));
}
function followAddress() {
  const asked = new URLSearchParams(window.location.hash.slice(1));
  const found = benchmarkOf(asked), view = asked.get("view") || (asked.has("trace") ? "traces" : asked.has("benchmark") ? "board" : "overview");
  if (!data.benchmarks.length) { show("overview"); return; }
  chooseBenchmark(Math.max(0, found));
  if (asked.has("table")) state.table = asked.get("table");
  if (asked.has("run")) {
    const at = seen().runs.findIndex((r) => r.id === asked.get("run"));
    if (at >= 0) { byId("run").value = String(at); chooseRun(at); }
  }
  if (run() && run().protocols.some((p) => p.key === asked.get("protocol"))) {
    state.protocol = asked.get("protocol");
    byId("protocol").value = state.protocol;
  }
  if (asked.has("trace")) Object.assign(state, { kind: "all", find: "", subset: "" });
  byId("find").value = state.find;
  show(VIEWS.includes(view) ? view : "overview");
  if (asked.has("trace") && state.view === "traces") {
    const at = state.rows.findIndex((i) => seen().traces[i].id === asked.get("trace"));
    if (at >= 0) { select(at); byId("list").querySelector("[aria-current]").scrollIntoView({ block: "nearest" }); }
    else byId("trace-words").textContent = "This page does not hold the trace " + asked.get("trace") + ". " + byId("trace-words").textContent;
  }
}

// --- wiring --------------------------------------------------------------------------------------
for (const button of byId("views").children) button.addEventListener("click", () => { show(button.dataset.view); setAddress(); });
function chosen(id, change, draw) {
  byId(id).addEventListener(id === "find" ? "input" : "change", (event) => { change(event.target.value); draw(); setAddress(); });
}
chosen("benchmark", (value) => chooseBenchmark(Number(value)), () => show(DRAW[state.view] ? state.view : "board"));
chosen("run", (value) => chooseRun(Number(value)), drawList);
chosen("protocol", (value) => { state.protocol = value; }, drawList);
chosen("subset", (value) => { state.subset = value; }, drawList);
chosen("find", (value) => { state.find = value; }, drawList);
document.addEventListener("keydown", (event) => {
  if (state.view !== "traces" || event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) return;
  const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (by) { event.preventDefault(); move(by); }
  if (event.key === "/") { event.preventDefault(); byId("find").focus(); }
});
window.addEventListener("hashchange", followAddress);
byId("rule-list").replaceChildren(...Object.entries(data.rules).flatMap(([name, [title, said]]) => [el("dt", {}, title + " ", el("code", {}, name)), el("dd", {}, said)]));
fill(byId("benchmark"), data.benchmarks.map((b, i) => [String(i), benchName(b)]), "0");
drawOverview(go);
if (!data.benchmarks.length) byId("rule-words").textContent = "There is no run to show.";
followAddress();
document.documentElement.dataset.ready = "";
