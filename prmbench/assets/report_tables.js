// Tables: by threshold rule, of typed cells, of published numbers; figures and the overview. All tables sort and filter.

// --- one table -----------------------------------------------------------------------------------
const MIN_FILTERED_ROWS = 8; // larger tables have a filter box
const tableStates = new Map(); // sort order and filter of each table
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

// Rows without a value come last in either direction, numbers before text.
function compareValues(a, b, descending) {
  const isMissing = (x) => x === null || x === undefined || x === "";
  if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return (descending ? -1 : 1) * (typeof a === "number" ? a - b : collator.compare(a, b));
}
// columns: {label, tip, isText}; groups: {name, rows: {node, values, text, floor}}. Floors stay at the bottom.
function table(id, label, columns, groups) {
  if (!tableStates.has(id)) tableStates.set(id, { column: null, descending: false, filter: "" });
  const tableState = tableStates.get(id), count = el("output", { class: "count" });
  const movable = groups.flatMap((g) => g.rows).filter((r) => !r.floor);
  const bodies = groups.map((g) => el("tbody", { class: g.name }));
  const heads = columns.map((column, at) => el("th", { scope: "col" },
    el("button", { type: "button", "data-column": String(at), "data-sort": column.key, ...tooltip(column.tip), onclick: () => {
      tableState.descending = tableState.column === at ? !tableState.descending : !column.isText;
      tableState.column = at;
      sort();
    } }, column.label), column.more));
  function sort() {
    heads.forEach((head, at) => {
      if (tableState.column === at) head.setAttribute("aria-sort", tableState.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const order = (a, b) => (a.floor || false) - (b.floor || false) || compareValues(a.values[tableState.column], b.values[tableState.column], tableState.descending);
    groups.forEach((g, i) => bodies[i].replaceChildren(...(tableState.column === null ? g.rows : [...g.rows].sort(order)).map((r) => r.node)));
  }
  function filter() {
    const words = tableState.filter.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of movable) row.node.hidden = !words.every((word) => row.text.includes(word));
    count.textContent = movable.filter((row) => !row.node.hidden).length + " of " + movable.length + " rows";
  }
  sort();
  filter();
  const box = el("input", { type: "search", class: "filter", value: tableState.filter, placeholder: "model, protocol \u2026", oninput: (event) => { tableState.filter = event.target.value; filter(); } });
  return [movable.length > MIN_FILTERED_ROWS ? el("div", { class: "filters" }, el("label", {}, "Filter rows ", box), count) : null,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, el("table", {}, el("thead", {}, el("tr", {}, ...heads)), ...bodies))].filter(Boolean);
}
const row = (node, values, floor) => ({ node, values, floor, text: node.textContent.toLowerCase() });

// --- the tables of a benchmark -------------------------------------------------------------------
function drawBoard() {
  const b = benchmark();
  const choices = [...b.rule_tables.map((t) => [t.rule, data.rules[t.rule][0]]), ...b.tables.map((g) => [g.label, g.title])];
  if (!choices.some(([name]) => name === state.table)) state.table = choices.length ? choices[0][0] : "";
  byId("rules").replaceChildren(...choices.map(([name, title]) => el("button", {
    type: "button", "aria-pressed": String(name === state.table), "data-rule": name,
    onclick: () => { state.table = name; drawBoard(); byId("rules").querySelector("[aria-pressed=true]").focus(); updateAddress(); },
  }, title)));
  const typed = b.tables.find((g) => g.label === state.table), isTyped = typed !== undefined;
  const shown = isTyped ? typed : b.rule_tables.find((t) => t.rule === state.table);
  byId("rule-words").textContent = !shown ? "No run is listed for this benchmark." : isTyped ? [b.description, shown.caption].filter(Boolean).join(" ") : data.rules[shown.rule][1];
  byId("board").replaceChildren(...(!shown ? [] : isTyped ? typedTable(shown) : boardTable(shown)));
  byId("board-notes").replaceChildren(...(!shown ? [] : isTyped ? shown.notes : boardNotes(shown)).map((t) => el("p", {}, t)));
}
const columnTooltip = (name) => data.columns[name.toLowerCase()] || data.columns[name];
function boardTable(t) {
  const sizes = benchmark().sizes;
  const columns = [["model", "Model"], ["input", "Input"], ["signal", "Trained from"]].map(([name, label]) => ({ key: name, label, isText: true, tip: columnTooltip(label) }));
  for (const c of t.columns) columns.push({ key: c, label: heading(c), tip: [columnTooltip(c), sizes[c] ? sizes[c] + " traces. F1 in percent, its 95% interval, and the floors as ticks." : ""].filter(Boolean).join("\n") });
  columns.push({ key: "mdd", label: "Min. difference", tip: columnTooltip("min. difference") }, { key: "unscored", label: "Unscored", tip: columnTooltip("unscored") });
  const floors = t.rows.filter((l) => l.group === "floor");
  const groups = ["model", "baseline", "floor"].map((name) => ({ name, rows: t.rows.filter((l) => l.group === name).map((l) => boardRow(l, t, floors)) }));
  return table(benchmark().name + "/" + t.rule, data.rules[t.rule][0], columns, groups);
}
function boardRow(line, t, floors) {
  const floor = line.group === "floor";
  const node = el("tr", { class: line.group },
    el("td", { class: "model", title: line.run ? "run " + line.run : null }, line.model, el("small", {}, key(line.protocol))),
    el("td", {}, line.input), el("td", {}, line.signal),
    ...t.columns.map((c) => f1Cell(line.cells[c], floors.map((f) => f.cells[c]), line.group)),
    el("td", { class: "right" }, floor ? "" : percent(line.mdd)),
    el("td", { class: "right" }, floor ? "" : line.unscored + " of " + line.n));
  const f1 = (c) => (line.cells[c] ? line.cells[c][0] : null);
  return row(node, [line.model, line.input, line.signal, ...t.columns.map(f1), line.mdd, floor ? null : line.unscored], floor);
}
function f1Cell(cell, floors, group) {
  if (!cell || cell[0] === null) return el("td", { class: "f1", ...tooltip(cell ? cell[6] : "") }, DASH + (cell ? cell[5] : ""));
  const [f1, lo, hi, error, correct, marks, note, tied] = cell;
  const track = el("div", { class: "track" });
  const placeMark = (name, left, width) => {
    const mark = el("i", { class: name });
    mark.style.left = 100 * left + "%";
    if (width !== undefined) mark.style.width = 100 * width + "%";
    track.append(mark);
  };
  if (group !== "floor") for (const floor of floors) if (floor && floor[0] !== null) placeMark("tick", floor[0]);
  if (lo !== null) placeMark("span", lo, hi - lo);
  placeMark("dot", f1);
  const accuracies = error === null ? "" : "Exact on traces with an error: " + percent(error) + "%; without one passed: " + percent(correct) + "%.";
  const other = marks.includes("\u2021");
  const kind = (tied ? " best" : "") + (other ? " other" : "");
  return el("td", { class: "f1" + kind, ...tooltip([accuracies, note].filter(Boolean).join("\n")) }, el("span", { class: "value" }, percent(f1) + marks),
    lo === null ? null : el("span", { class: "ends" }, "[" + percent(lo) + ", " + percent(hi) + "]"), track);
}
function boardNotes(t) {
  const used = t.rows.map((l) => l.model + Object.values(l.cells).map((c) => c[5]).join("")).join("");
  const notes = Object.entries(data.legend).filter(([mark]) => used.includes(mark)).map(([mark, text]) => mark + " " + text + ".");
  const reasons = new Set(t.rows.flatMap((l) => Object.values(l.cells)).filter((c) => c[0] === null && c[6]).map((c) => DASH + " " + c[6] + "."));
  return ["F1 in percent, [95% interval]. Thin ticks: the floors in the last rows." + (t.bold ? " " + t.bold : ""), ...notes, ...reasons];
}

// --- tables of typed cells: text, {code}, or a number: {value, number, interval, marks, best} ------
function typedTable(typed) {
  const columns = typed.header.map((label, at) => ({ label, isText: at < typed.text_columns, tip: columnTooltip(label) }));
  const groups = typed.groups.map((rows) => ({ name: "", rows: rows.map(({ floor, cells }) =>
    row(el("tr", { class: floor ? "floor" : null }, ...cells.map((cell, at) => typedCell(cell, at < typed.text_columns))), cells.map(sortValue), floor)) }));
  return table(benchmark().name + "/" + typed.label, typed.title, columns, groups);
}
const sortValue = (cell) => (typeof cell === "string" ? cell : "code" in cell ? cell.code : cell.value);
function typedCell(cell, isName) {
  if (typeof cell === "string") return el("td", { class: isName && cell.length > 24 ? "long" : null }, cell);
  if ("code" in cell) return el("td", {}, key(cell.code));
  if (isName) return el("td", {}, cell.number);
  return el("td", { class: "f1" + (cell.best ? " best" : "") }, el("span", { class: "value" }, cell.number), cell.interval ? el("span", { class: "ends" }, " " + cell.interval) : null, cell.marks);
}

// --- published -----------------------------------------------------------------------------------
function drawPublished() {
  const publications = benchmark().published, parts = [];
  for (const [rule, [title, explanation]] of Object.entries(data.rules)) {
    const rows = publications.flatMap((publication) => publication.rows.filter((r) => r.rule === rule).map((r) => [r, publication]));
    if (!rows.length) continue;
    const subsets = rows[0][1].subsets;
    const columns = ["Model", "Readout", "Threshold", ...subsets, "Average", "Source"].map((label, at, all) => ({ label, isText: at < 3 || at === all.length - 1, tip: columnTooltip(label) }));
    parts.push(el("h2", {}, title), el("p", { class: "explain" }, explanation),
      ...table("published/" + benchmark().name + "/" + rule, "Published, " + title, columns, [{ name: "model", rows: rows.map(([r, publication]) => publishedRow(r, publication, subsets)) }]));
  }
  const intro = "Measured by others and copied from their tables, not recomputed here: none is a run of this report. No interval was published.";
  const notes = publications.map((b) => el("p", {}, b.title + ": " + b.source + ". " + b.note));
  byId("published").replaceChildren(...(parts.length ? [el("p", { class: "explain" }, intro), ...parts, el("div", { class: "notes" }, ...notes)]
    : [el("p", { class: "empty" }, "No published numbers are on file for this benchmark.")]));
}
function publishedRow(r, publication, subsets) {
  const cell = (c) => el("td", { class: "right" }, digits(c.f1), c.error_accuracy === undefined ? null : el("small", {}, digits(c.error_accuracy) + " / " + digits(c.correct_accuracy)));
  const node = el("tr", {}, el("td", { class: "model" }, r.model, r.note ? el("small", {}, r.note) : null), el("td", {}, data.protocols[r.readout] ? key(r.readout) : r.readout),
    el("td", {}, r.threshold || "not stated"), ...subsets.map((s) => cell(r.cells[s])),
    el("td", { class: "right" }, digits(r.avg)), el("td", tooltip(publication.source + ". " + publication.note), publication.title));
  return row(node, [r.model, r.readout, r.threshold, ...subsets.map((s) => r.cells[s].f1), r.avg, publication.title]);
}

// --- figures and the overview --------------------------------------------------------------------
function drawFigures() {
  const message = bulk ? "There is no figure for this benchmark." : OLD_BROWSER;
  byId("figures").replaceChildren(...(details().figures.length ? details().figures.map((f) => el("figure", {},
    el("div", { class: "canvas", tabindex: "0", role: "region", "aria-label": f.title }, el("img", { src: "data:image/svg+xml," + encodeURIComponent(f.svg), alt: f.title + ". " + f.caption, decoding: "async" })),
    el("figcaption", {}, el("b", {}, f.title), f.caption))) : [el("p", { class: "empty" }, message)]));
}
// Models against benchmarks; the head of a column names its one protocol, the last row is the best without a model.
function drawStandings(openView) {
  const columns = data.benchmarks.map((b, at) => [b, at]).filter(([b]) => b.standing);
  byId("standings").hidden = !columns.length;
  if (!columns.length) return;
  const heads = columns.map(([b, at]) => ({
    key: "standing-" + at, label: benchmarkName(b), tip: b.standing.rule_text,
    more: el("div", { class: "head" }, el("span", {}, b.standing.heading + ", " + b.standing.traces), el("span", {}, b.standing.rule),
      ...b.standing.protocols.map((name, i) => el("span", {}, i ? "or " : "", key(name))),
      el("span", { class: "links" }, el("button", { type: "button", "data-go": "board", "aria-label": "Tables of " + benchmarkName(b), onclick: () => openView(at, "board") }, "tables"))),
  }));
  const rows = data.models.map((model) => row(el("tr", {}, el("th", { scope: "row" }, model), ...columns.map(([b]) => standingCell(own(b.standing.cells, model)))),
    [model, ...columns.map(([b]) => (own(b.standing.cells, model) || {}).value)]));
  const bounds = row(el("tr", { class: "floor" }, el("th", { scope: "row" }, "best without a model"), ...columns.map(([b]) => {
    const bound = b.standing.bound;
    return el("td", { class: "f1" }, bound ? el("span", { class: "value" }, bound.number) : DASH, el("small", {}, bound ? bound.name : "none on file"));
  })), [null], true);
  byId("matrix").replaceChildren(...table("standings", "Models against benchmarks", [{ key: "model", label: "Model", isText: true }, ...heads],
    [{ name: "model", rows }, { name: "floor", rows: [bounds] }]));
}
function standingCell(cell) {
  if (!cell) return el("td", { class: "f1" }, el("span", { "aria-label": "not run" }, DASH));
  if (cell.reason) return el("td", { class: "f1" }, DASH, el("small", {}, cell.reason));
  const direction = cell.clear > 0 ? "up" : cell.clear < 0 ? "down" : "";
  return el("td", { class: "f1" }, el("span", { class: "value" }, cell.number), el("span", { class: "ends" }, cell.interval),
    cell.difference ? el("small", { class: "gap " + direction }, cell.difference + " " + cell.difference_interval) : null,
    cell.runs > 1 ? el("small", {}, "best of " + cell.runs + " runs") : null,
    cell.reading ? el("small", { class: "reading" }, cell.reading) : null);
}
function drawOverview(openView) {
  drawStandings(openView);
  byId("cards").replaceChildren(...data.benchmarks.map((b, at) => {
    const content = bulk ? bulk[at] : EMPTY, card = b.card;
    const links = [["board", b.rule_tables.length + b.tables.length, "table"], ["traces", content.traces.length, "trace"], ["figures", content.figures.length, "figure"], ["published", b.published.flatMap((p) => p.rows).length, "published row"]]
      .filter(([, n]) => n).map(([view, n, noun]) => el("button", { type: "button", "data-go": view, onclick: () => openView(at, view) }, n + " " + noun + (n === 1 ? "" : "s")));
    const facts = card.facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, typeof text === "string" ? text : key(text.code))));
    return el("article", { class: "card" + (b.unlisted ? " other" : "") },
      el("h3", {}, benchmarkName(b), el("small", {}, card.runs + (card.runs === 1 ? " run" : " runs"))), el("p", {}, card.description),
      card.number === "" ? el("p", { class: "none" }, card.runs ? "No number that may stand by itself; see the tables." : "No run is listed yet.")
        : el("p", { class: "lead" }, card.number.number || card.number, el("small", {}, card.number.interval ? " " + card.number.interval : "")),
      el("dl", {}, ...facts), el("div", { class: "links" }, ...links));
  }));
}
