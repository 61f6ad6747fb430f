"use strict";
// Shows the data of the page. Decides no number: predictions, thresholds and intervals come from prmbench.
// Text of traces and names of models enter the page through text nodes only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const DASH = "\u2013";
  const state = { bench: 0, rule: "", sort: null, run: 0, protocol: "", subset: "", kind: "all", find: "", at: 0, rows: [] };

  function el(tag, props, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props || {})) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((c) => c !== null));
    return node;
  }
  function svg(tag, props, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }
  const digits = (x) => (Math.round(10 * x) / 10 === x ? x.toFixed(1) : x.toFixed(2));
  const percent = (x) => (x === null ? DASH : (100 * x).toFixed(1));
  const bench = () => data.benchmarks[state.bench];
  const heading = (column) => (column.startsWith("avg[") ? "avg of " + column.slice(4, -1).split(",").join(", ") : column);

  // --- views -------------------------------------------------------------------------------------
  function show(view) {
    for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== "view-" + view;
    for (const button of byId("views").children) {
      if (button.dataset.view === view) button.setAttribute("aria-current", "page");
      else button.removeAttribute("aria-current");
    }
  }
  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
  }

  // --- tables ------------------------------------------------------------------------------------
  function drawBoard() {
    const grids = bench().grids || [];
    if (grids.length) { drawGrids(grids); return; }
    const tables = bench().tables;
    if (!tables.some((t) => t.rule === state.rule)) state.rule = tables.length ? tables[0].rule : "";
    byId("rules").replaceChildren(...tables.map((t) => el("button", {
      type: "button", role: "tab", "aria-selected": String(t.rule === state.rule), "data-rule": t.rule,
      onclick: () => { state.rule = t.rule; state.sort = null; drawBoard(); },
    }, data.rules[t.rule][0])));
    const table = tables.find((t) => t.rule === state.rule);
    byId("rule-words").textContent = table ? data.rules[table.rule][1] : "No run is listed for this benchmark.";
    byId("board").replaceChildren(...(table ? [boardHead(table), ...boardBodies(table)] : []));
    byId("board-notes").replaceChildren(...(table ? boardNotes(table) : []));
  }
  const FACTS = [["model", "Model"], ["input", "Input"], ["signal", "Trained from"]];
  function boardHead(table) {
    const heads = [...FACTS.map(([k, t]) => [k, t]), ...table.columns.map((c) => [c, heading(c)]),
      ["mdd", "Min. difference"], ["unscored", "Unscored"]];
    return el("thead", {}, el("tr", {}, ...heads.map(([key, text]) => {
      const sorted = state.sort && state.sort.key === key ? (state.sort.down ? "descending" : "ascending") : null;
      const size = bench().sizes[key];
      return el("th", { "aria-sort": sorted, scope: "col", title: size ? size + " traces" : null },
        el("button", { type: "button", "data-sort": key, onclick: () => sortBy(key, table) }, text));
    })));
  }
  function sortBy(key, table) {
    const text = FACTS.some(([k]) => k === key);
    state.sort = { key, down: state.sort && state.sort.key === key ? !state.sort.down : !text };
    byId("board").replaceChildren(boardHead(table), ...boardBodies(table));
  }
  function sortValue(line, key) {
    const value = key in line ? line[key] : line.cells[key] ? line.cells[key][0] : null;
    return value === null ? -1 : value;
  }
  function boardBodies(table) {
    const floors = table.lines.filter((l) => l.group === "floor");
    const best = {};
    for (const c of table.columns) {
      const found = table.lines.filter((l) => l.group === "model" && l.cells[c] && l.cells[c][0] !== null && !l.cells[c][5].includes("\u2021"));
      best[c] = found.length > 1 ? Math.max(...found.map((l) => l.cells[c][0])) : null;
    }
    return ["model", "baseline", "floor"].map((group) => {
      const lines = table.lines.filter((l) => l.group === group);
      if (state.sort && group !== "floor") {
        const order = state.sort.down ? -1 : 1;
        const key = (l) => sortValue(l, state.sort.key);
        lines.sort((a, b) => order * (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
      }
      return el("tbody", { class: group }, ...lines.map((l) => boardRow(l, table, floors, best)));
    });
  }
  function boardRow(line, table, floors, best) {
    return el("tr", { class: line.group },
      el("td", { class: "model", title: line.run ? "run " + line.run : null }, line.model, el("small", {}, el("code", {}, line.protocol))),
      el("td", {}, line.input), el("td", {}, line.signal),
      ...table.columns.map((c) => f1Cell(line.cells[c], floors.map((f) => f.cells[c]), best[c], line.group)),
      el("td", { class: "right" }, line.group === "floor" ? "" : percent(line.mdd)),
      el("td", { class: "right" }, line.group === "floor" ? "" : line.unscored + " of " + line.n));
  }
  function f1Cell(cell, floors, best, group) {
    if (!cell || cell[0] === null) return el("td", { class: "f1", title: cell ? cell[6] : null }, DASH + (cell ? cell[5] : ""));
    const [f1, lo, hi, error, correct, marks, note] = cell;
    const track = el("div", { class: "track" });
    const put = (name, left, width) => {
      const mark = el("i", { class: name });
      mark.style.left = 100 * left + "%";
      if (width !== undefined) mark.style.width = 100 * width + "%";
      track.append(mark);
    };
    if (group !== "floor") for (const floor of floors) if (floor && floor[0] !== null) put("tick", floor[0]);
    if (lo !== null) put("span", lo, hi - lo);
    put("dot", f1);
    const title = error === null ? note : "accuracy with an error " + percent(error) + ", without " + percent(correct) + (note ? "; " + note : "");
    const kind = (best !== null && f1 === best && group === "model" ? " best" : "") + (marks.includes("\u2021") ? " other" : "");
    return el("td", { class: "f1" + kind, title }, el("span", { class: "value" }, percent(f1) + marks),
      lo === null ? null : el("span", { class: "ends" }, "[" + percent(lo) + ", " + percent(hi) + "]"), track);
  }
  function boardNotes(table) {
    const used = table.lines.map((l) => l.model + Object.values(l.cells).map((c) => c[5]).join("")).join("");
    const notes = Object.entries(data.legend).filter(([mark]) => used.includes(mark)).map(([mark, words]) => mark + " " + words + ".");
    const reasons = new Set(table.lines.flatMap((l) => Object.values(l.cells)).filter((c) => c[0] === null && c[6]).map((c) => DASH + " " + c[6] + "."));
    return ["F1 in percent, [95% interval]. Thin ticks: the floors in the last rows.", ...notes, ...reasons].map((t) => el("p", {}, t));
  }

  // Tables that come as text: `code`, **best**, and numbers with [their interval].
  function drawGrids(grids) {
    if (!grids.some((g) => g.label === state.rule)) state.rule = grids[0].label;
    const grid = grids.find((g) => g.label === state.rule);
    byId("rules").replaceChildren(...grids.map((g) => el("button", {
      type: "button", role: "tab", "aria-selected": String(g === grid), "data-rule": g.label,
      onclick: () => { state.rule = g.label; state.sort = null; drawGrids(grids); },
    }, g.title)));
    byId("rule-words").textContent = bench().words + " " + grid.caption;
    const heads = grid.header.map((text, at) => {
      const sorted = state.sort && state.sort.key === at ? (state.sort.down ? "descending" : "ascending") : null;
      const sort = () => { state.sort = { key: at, down: sorted ? sorted !== "descending" : at >= grid.text_columns }; drawGrids(grids); };
      return el("th", { "aria-sort": sorted, scope: "col" }, el("button", { type: "button", "data-column": String(at), onclick: sort }, text));
    });
    byId("board").replaceChildren(el("thead", {}, el("tr", {}, ...heads)),
      ...grid.groups.map((rows) => el("tbody", {}, ...sortedRows(rows).map((row) => el("tr", { class: isFloor(row) ? "floor" : null }, ...row.map((text, at) => gridCell(text, at < grid.text_columns)))))));
    byId("board-notes").replaceChildren(...grid.notes.map((t) => el("p", {}, t)));
  }
  const isFloor = (row) => row.some((text) => text.startsWith("`floor/"));
  function sortedRows(rows) {
    if (!state.sort) return rows;
    const { key, down } = state.sort;
    const value = (row) => { const x = parseFloat(row[key].replace(/[*<]/g, "")); return Number.isNaN(x) ? row[key] : x; };
    const before = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1);
    const order = (a, b) => isFloor(a) - isFloor(b) || (down ? -1 : 1) * before(value(a), value(b));
    return [...rows].sort(order); // floors stay beneath
  }
  function gridCell(text, words) {
    if (words) return el("td", {}, text.startsWith("`") ? el("code", {}, text.slice(1, -1)) : text);
    const [, bold, value, ends, marks] = /^(\*\*)?([^ *\[]*)(?:\*\*)?( \[[^\]]*\])?(.*)$/.exec(text);
    return el("td", { class: "f1" + (bold ? " best" : "") }, el("span", { class: "value" }, value), ends ? el("span", { class: "ends" }, ends) : null, marks);
  }

  // --- published ---------------------------------------------------------------------------------
  function drawPublished() {
    const books = bench().published;
    const parts = [];
    for (const [rule, [title, words]] of Object.entries(data.rules)) {
      const rows = books.flatMap((book) => book.rows.filter((r) => r.rule === rule).map((r) => [r, book]));
      if (!rows.length) continue;
      const subsets = rows[0][1].subsets;
      const head = ["Model", "Readout", "Threshold", ...subsets, "Average", "Source"];
      parts.push(el("h2", {}, title), el("p", { class: "explain" }, words),
        el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...head.map((t) => el("th", {}, t)))),
          el("tbody", {}, ...rows.map(([r, book]) => el("tr", {}, el("td", { class: "model" }, r.model, r.note ? el("small", {}, r.note) : null), el("td", {}, r.readout),
            el("td", {}, r.threshold || "not stated"), ...subsets.map((s) => publishedCell(r.cells[s])),
            el("td", { class: "right" }, digits(r.avg)), el("td", { title: book.source + ". " + book.note }, book.title)))))));
    }
    const intro = "Measured by others and copied from their tables, not recomputed here. No interval was published.";
    const notes = books.map((b) => el("p", {}, b.title + ": " + b.source + ". " + b.note));
    byId("published").replaceChildren(...(parts.length ? [el("p", { class: "explain" }, intro), ...parts, el("div", { class: "notes" }, ...notes)]
      : [el("p", { class: "empty" }, "No published numbers are on file for this benchmark.")]));
  }
  function publishedCell(cell) {
    const parts = cell.error_accuracy === undefined ? null : el("small", {}, digits(cell.error_accuracy) + " / " + digits(cell.correct_accuracy));
    return el("td", { class: "right" }, digits(cell.f1), parts);
  }
  function drawFigures() {
    byId("figures").replaceChildren(...bench().figures.map((f) => el("figure", {}, el("img", { src: f.src, alt: f.title }),
      el("figcaption", {}, el("b", {}, f.title), f.caption))));
  }

  // --- traces ------------------------------------------------------------------------------------
  const run = () => bench().runs[state.run];
  const protocol = () => run().protocols.find((p) => p.key === state.protocol);
  const RIGHT = new Set(["exact", "passed"]);
  const kindOf = (i) => data.kinds[protocol().kind[i]] || "";
  const textOf = (i) => data.texts[bench().name][bench().traces[i].id];
  let ranks = { below: [], above: [] };

  function chooseRun(index) {
    state.run = index;
    const keys = run().protocols.map((p) => p.key);
    if (!keys.includes(state.protocol)) state.protocol = run().default || keys[0] || "";
    fill(byId("protocol"), keys.map((k) => [k, k]), state.protocol);
    drawList();
  }
  function limitOf(i) {
    const p = protocol();
    return p && p.limit[i] >= 0 ? p.limits[p.limit[i]] : null;
  }
  // A step's colour: its side of the threshold, and its rank on that side among all steps shown.
  function rankScores() {
    const below = [], above = [];
    const scores = run().readouts[protocol().readout] || [];
    scores.forEach((values, i) => {
      const limit = limitOf(i);
      if (values && limit !== null) for (const v of values) (v < limit ? below : above).push(Math.abs(v - limit));
    });
    ranks = { below: below.sort((a, b) => a - b), above: above.sort((a, b) => a - b) };
  }
  function level(score, limit) {
    if (limit === null) return "";
    const list = score < limit ? ranks.below : ranks.above;
    const distance = Math.abs(score - limit);
    let lo = 0, hi = list.length;
    while (lo < hi) { const mid = (lo + hi) >> 1; if (list[mid] < distance) lo = mid + 1; else hi = mid; }
    return "lv-" + (score < limit ? "n" : "p") + Math.min(4, 1 + Math.floor(4 * lo / Math.max(1, list.length)));
  }
  function stepLevels(i) {
    const scores = (run().readouts[protocol().readout] || [])[i];
    const limit = limitOf(i), guess = protocol().predicted[i];
    const classes = [];
    for (let k = 0; k < bench().traces[i].k; k++) {
      if (scores) {
        // Scores are rounded on this page; what prmbench predicted settles a tie with the threshold.
        let name = level(scores[k], limit);
        if (k === guess && name.startsWith("lv-p")) name = "lv-n1";
        if ((guess < 0 || k < guess) && name.startsWith("lv-n")) name = "lv-p1";
        classes.push(name);
      } else classes.push(run().votes && k === guess ? "lv-n3" : "");
    }
    return classes;
  }
  const place = (k) => (k === null ? "no answer" : k < 0 ? "no error" : "step " + (k + 1));

  function matching() {
    const p = protocol(), words = state.find.toLowerCase();
    return bench().traces.map((_, i) => i).filter((i) => {
      const t = bench().traces[i];
      if (p.kind[i] < 0 || (state.subset && t.subset !== state.subset)) return false;
      const text = words ? textOf(i) : null;
      return !words || [t.id, ...(text ? [text.problem, ...text.steps] : [])].some((s) => s.toLowerCase().includes(words));
    });
  }
  const keeps = (kind) => state.kind === "all" || state.kind === kind || (state.kind === "right" && RIGHT.has(kind)) || (state.kind === "wrong" && !RIGHT.has(kind));

  function drawList() {
    const b = bench();
    if (!b.runs.length || !protocol()) {
      byId("list").replaceChildren(); byId("chips").replaceChildren(); byId("trace-words").textContent = "";
      byId("detail").replaceChildren(el("p", { class: "empty" }, "There is no scored trace to show."));
      return;
    }
    rankScores();
    const candidates = matching();
    drawChips(candidates.map(kindOf));
    state.rows = candidates.filter((i) => keeps(kindOf(i)));
    const part = b.traces.length < b.total ? " This page holds " + b.traces.length + " of the " + b.total + " scored traces, the same share of every subset." : "";
    const text = b.traces.some((_, i) => textOf(i)) ? "" : " Scores travel without text: run prmbench report with the traces (--data) to read the steps here.";
    byId("trace-words").textContent = state.rows.length + " of " + candidates.length + " traces." + part + text;
    byId("list").replaceChildren(...state.rows.map((i, at) => el("li", {}, traceRow(i, at))));
    state.at = 0;
    select(0, false);
  }
  function drawChips(kinds) {
    const count = (test) => kinds.filter(test).length;
    const right = count((k) => RIGHT.has(k));
    const chips = [["all", kinds.length], ["right", right], ["wrong", kinds.length - right], null,
      ...data.kinds.map((k) => [k, count((x) => x === k)]).filter(([k, n]) => n || k === state.kind)];
    byId("chips").replaceChildren(...chips.map((c) => (c === null ? el("span", { class: "gap" }) : el("button", {
      type: "button", "aria-pressed": String(state.kind === c[0]), "data-kind": c[0],
      onclick: () => { state.kind = c[0]; drawList(); },
    }, c[0], el("b", {}, String(c[1]))))));
  }
  function traceRow(i, at) {
    const t = bench().traces[i], kind = kindOf(i);
    const strip = el("span", { class: "strip" }, ...stepLevels(i).map((name, k) => el("i", { class: (name + (k === t.label ? " true" : "")).trim() })));
    return el("button", { type: "button", class: "trace", "data-index": i, onclick: () => select(at, false) },
      el("span", { class: "mark " + (RIGHT.has(kind) ? "right" : "wrong") }, RIGHT.has(kind) ? "\u2713" : "\u2717"),
      el("span", { class: "name" }, t.id), el("span", { class: "what" }, kind), strip);
  }
  function select(at, scroll) {
    const buttons = byId("list").querySelectorAll(".trace");
    if (!buttons.length) { byId("detail").replaceChildren(el("p", { class: "empty" }, "No trace matches.")); return; }
    if (buttons[state.at]) buttons[state.at].removeAttribute("aria-current");
    state.at = Math.max(0, Math.min(at, buttons.length - 1));
    buttons[state.at].setAttribute("aria-current", "true");
    if (scroll) buttons[state.at].scrollIntoView({ block: "nearest" });
    drawDetail(state.rows[state.at]);
  }
  function drawDetail(i) {
    const t = bench().traces[i], p = protocol(), limit = limitOf(i), guess = p.predicted[i], text = textOf(i);
    const scores = (run().readouts[p.readout] || [])[i];
    const answer = t.outcome === null ? "" : t.outcome ? "final answer right" : "final answer wrong";
    const verdict = el("p", { class: "verdict" }, "True first error: ", el("b", {}, place(t.label)), ". Predicted: ",
      el("b", {}, run().unscored[i] ? "unscored (" + run().unscored[i] + ")" : place(guess)), ". ", el("b", {}, kindOf(i)), ". ",
      [t.subset, answer].filter(Boolean).join(", ") + ".");
    const votes = run().votes ? el("p", { class: "verdict" }, "Critiques: " + (run().votes[i].map(place).join(", ") || "none")) : null;
    const classes = stepLevels(i);
    const steps = Array.from({ length: t.k }, (_, k) => el("li", { class: ("step " + classes[k] + (t.label >= 0 && k > t.label ? " after" : "")).trim() },
      el("span", { class: "index" }, String(k + 1)),
      el("div", {}, el("div", { class: "flags" }, k === t.label ? el("span", { class: "flag true" }, "\u2691 true first error") : null,
        k === guess ? el("span", { class: "flag guess" }, "\u2690 predicted first error") : null),
      el("div", { class: "text" }, text ? text.steps[k] : "")),
      el("span", { class: "score" }, scores ? el("span", { class: "num" }, number(scores[k])) : "")));
    byId("detail").replaceChildren(...[el("h2", {}, t.id), verdict, votes, ...chart(scores, limit, classes),
      ...(text ? [el("h3", {}, "Problem"), el("div", { class: "problem" }, text.problem)] : []),
      el("h3", {}, scores ? "Steps and " + p.readout + " scores" : "Steps"), el("ol", { class: "steps" }, ...steps)].filter((x) => x !== null));
  }
  const number = (x) => (Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.001) ? x.toExponential(2) : x.toPrecision(4)).replace("-", "\u2212");
  function chart(scores, limit, classes) {
    if (!scores || scores.length < 2) return [];
    const all = limit === null ? scores : [...scores, limit];
    const lo = Math.min(...all), hi = Math.max(...all), width = 700, height = 110;
    const x = (k) => 20 + k * (width - 120) / (scores.length - 1), y = (v) => 12 + (hi === lo ? 0.5 : (hi - v) / (hi - lo)) * (height - 36);
    const node = svg("svg", { class: "chart", viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Score by step" });
    if (limit !== null) {
      node.append(svg("line", { class: "limit", x1: 10, x2: width - 95, y1: y(limit), y2: y(limit) }),
        svg("text", { x: width - 90, y: y(limit) + 3 }, "threshold " + number(limit)));
    }
    node.append(svg("path", { class: "path", d: scores.map((v, k) => (k ? "L" : "M") + x(k) + " " + y(v)).join("") }));
    const every = Math.ceil(scores.length / 20);
    scores.forEach((v, k) => {
      const dot = svg("circle", { cx: x(k), cy: y(v), r: 4.5 });
      if (classes[k]) dot.style.fill = "var(--" + classes[k].slice(3) + ")";
      node.append(dot);
      if (k % every === 0) node.append(svg("text", { x: x(k), y: height - 3, "text-anchor": "middle" }, String(k + 1)));
    });
    const legend = el("div", { class: "legend" }, el("span", {}, "below threshold"), ...["n4", "n3", "n2", "n1", "p1", "p2", "p3", "p4"].map((n) => el("i", { class: "lv-" + n })), el("span", {}, "above"));
    return limit === null ? [node] : [node, legend];
  }

  // --- wiring ------------------------------------------------------------------------------------
  function chooseBenchmark(index) {
    state.bench = index; state.sort = null; state.subset = ""; state.protocol = "";
    const b = bench();
    byId("unlisted").hidden = !b.unlisted;
    byId("unlisted").textContent = "These runs are not listed on the leaderboard: " + b.unlisted + ".";
    drawBoard(); drawPublished(); drawFigures();
    const subsets = [...new Set(b.traces.map((t) => t.subset))];
    fill(byId("subset"), [["", "all"], ...subsets.map((s) => [s, s])], "");
    fill(byId("run"), b.runs.map((r, i) => [String(i), r.model + " \u00b7 " + r.id.slice(0, 8)]), "0");
    if (b.runs.length) chooseRun(0); else drawList();
  }
  function theme(name) { document.documentElement.dataset.theme = name; }
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  theme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  for (const button of byId("views").children) button.addEventListener("click", () => show(button.dataset.view));
  byId("benchmark").addEventListener("change", (e) => chooseBenchmark(Number(e.target.value)));
  byId("run").addEventListener("change", (e) => chooseRun(Number(e.target.value)));
  byId("protocol").addEventListener("change", (e) => { state.protocol = e.target.value; drawList(); });
  byId("subset").addEventListener("change", (e) => { state.subset = e.target.value; drawList(); });
  byId("find").addEventListener("input", (e) => { state.find = e.target.value; drawList(); });
  document.addEventListener("keydown", (e) => {
    if (byId("view-traces").hidden || /INPUT|SELECT/.test(e.target.tagName)) return;
    const move = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[e.key];
    if (move) { e.preventDefault(); select(state.at + move, true); }
  });
  byId("rule-list").replaceChildren(...Object.entries(data.rules).flatMap(([key, [title, words]]) => [el("dt", {}, title + " ", el("code", {}, key)), el("dd", {}, words)]));
  fill(byId("benchmark"), data.benchmarks.map((b, i) => [String(i), b.name + (b.unlisted ? " (not listed)" : "")]), "0");
  if (data.benchmarks.length) chooseBenchmark(0);
  else byId("rule-words").textContent = "There is no run to show.";
})();
