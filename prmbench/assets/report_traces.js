// The trace viewer: a list that is searched and filtered, and one trace in full.

const run = () => details().runs[state.run];
const protocol = () => run() && run().protocols.find((p) => p.key === state.protocol);
const RIGHT = new Set(["exact", "passed", "right pick"]);
const kindOf = (i) => data.kinds[protocol().kind[i]] || "";
const textOf = (i) => own(details().texts, details().traces[i].id);
const stepName = (k) => (k === null ? "no answer" : k < 0 ? "no error" : "step " + (k + 1));
const isPicks = () => details().task === "best_of_n";
let ranks = { below: [], above: [] };

// --- formulas ------------------------------------------------------------------------------------
// prmbench has converted them to MathML, as [name, attributes or 0, ...children]; what it could not convert stays text.
const MATHML = "http://www.w3.org/1998/Math/MathML";
const FORMULA = new RegExp(data.formula, "g");
function mathNode([name, attributes, ...children]) {
  const node = document.createElementNS(MATHML, name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children.map((child) => (typeof child === "string" ? child : mathNode(child))));
  return node;
}
function withFormulas(text) {
  const nodes = [], trees = details().formulas || {};
  let end = 0;
  for (const match of text.matchAll(FORMULA)) {
    if (!Object.hasOwn(trees, match[0])) continue;
    const math = mathNode(trees[match[0]]);
    math.setAttribute("alttext", match[0]);
    nodes.push(text.slice(end, match.index), el("span", { class: math.getAttribute("display") === "block" || match[0].length > 60 ? "formula wide" : "formula" }, math));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
}
// A formula wider than its place fades at the side where it goes on; it scrolls by finger, wheel and keyboard.
function markWideFormulas(place) {
  for (const node of place.querySelectorAll(".formula.wide")) {
    const mark = () => node.classList.toggle("cut", node.scrollLeft + node.clientWidth < node.scrollWidth - 1);
    node.tabIndex = node.scrollWidth > node.clientWidth ? 0 : -1;
    node.addEventListener("scroll", mark);
    mark();
  }
}
document.addEventListener("toggle", (event) => { if (event.target.open) markWideFormulas(event.target); }, true);

function chooseRun(index) {
  state.run = index;
  const keys = run() ? run().protocols.map((p) => p.key) : [];
  if (!keys.includes(state.protocol)) state.protocol = (run() && run().default) || keys[0] || "";
  fill(byId("protocol"), keys.map((k) => [k, k]), state.protocol);
}

// --- colours -------------------------------------------------------------------------------------
// A step's colour: its side of the threshold, and its rank on that side among all steps shown.
function limitOf(i) {
  const p = protocol();
  return p.limit[i] >= 0 ? p.limits[p.limit[i]] : null;
}
function rankScores() {
  if (isPicks()) return;
  const below = [], above = [];
  (run().readouts[protocol().readout] || []).forEach((values, i) => {
    const limit = limitOf(i);
    if (values && limit !== null) for (const v of values) (v < limit ? below : above).push(Math.abs(v - limit));
  });
  ranks = { below: below.sort((a, b) => a - b), above: above.sort((a, b) => a - b) };
}
function level(score, limit) {
  if (limit === null) return "";
  const list = score < limit ? ranks.below : ranks.above, distance = Math.abs(score - limit);
  let lo = 0, hi = list.length;
  while (lo < hi) { const mid = (lo + hi) >> 1; if (list[mid] < distance) lo = mid + 1; else hi = mid; }
  return "lv-" + (score < limit ? "n" : "p") + Math.min(4, 1 + Math.floor(4 * lo / Math.max(1, list.length)));
}
function stepLevels(i) {
  const scores = (run().readouts[protocol().readout] || [])[i];
  const limit = limitOf(i), predicted = protocol().predicted[i];
  return Array.from({ length: details().traces[i].k }, (_, k) => {
    if (!scores) return run().votes && k === predicted ? "lv-n3" : "";
    // Scores are rounded on this page, so prmbench's prediction decides ties with the threshold.
    const name = level(scores[k], limit);
    if (k === predicted && name.startsWith("lv-p")) return "lv-n1";
    return (predicted < 0 || k < predicted) && name.startsWith("lv-n") ? "lv-p1" : name;
  });
}

// --- the list ------------------------------------------------------------------------------------
// Every word must occur in the id, the subset, the verdict, the problem or a step.
function matching() {
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  return details().traces.map((_, i) => i).filter((i) => {
    const t = details().traces[i], text = textOf(i);
    if (protocol().kind[i] < 0 || (state.subset && t.subset !== state.subset)) return false;
    const all = words.length ? [t.id, t.subset, kindOf(i), ...(text ? [text.problem, ...text.steps] : [])].join("\n").toLowerCase() : "";
    return words.every((word) => all.includes(word));
  });
}
const matchesKind = (kind) => state.kind === "all" || state.kind === kind || (state.kind === "right" && RIGHT.has(kind)) || (state.kind === "wrong" && !RIGHT.has(kind));

function drawList() {
  const b = details();
  byId("protocol-words").textContent = (data.protocols[state.protocol] || "").replace(/\n/g, " ");
  state.rows = [];
  if (!b.runs.length || !protocol()) {
    byId("list").replaceChildren(); byId("chips").replaceChildren(); byId("trace-words").textContent = "";
    byId("detail").replaceChildren(el("p", { class: "empty" }, bulk ? "There is no scored trace to show." : OLD_BROWSER));
    return;
  }
  rankScores();
  const candidates = matching();
  drawChips(candidates.map(kindOf));
  state.rows = candidates.filter((i) => matchesKind(kindOf(i)));
  const part = b.traces.length < b.total ? " This page holds " + b.traces.length + " of the " + b.total + (isPicks() ? " problems." : " scored traces, the same share of every subset.") : "";
  const text = b.traces.some((_, i) => textOf(i)) ? "" : " Scores travel without text: run prmbench report with the traces (--data) to read the steps here.";
  byId("trace-words").textContent = state.rows.length + " of " + candidates.length + (isPicks() ? " problems." : " traces.") + part + text;
  byId("list").replaceChildren(...state.rows.map((i, at) => el("li", {}, traceRow(i, at))));
  state.position = 0;
  select(0);
}
function drawChips(kinds) {
  const count = (test) => kinds.filter(test).length;
  const right = count((k) => RIGHT.has(k));
  const chips = [["all", kinds.length], ["right", right], ["wrong", kinds.length - right], null,
    ...data.kinds.map((k) => [k, count((x) => x === k)]).filter(([k, n]) => n || k === state.kind)];
  byId("chips").replaceChildren(...chips.map((c) => (c === null ? el("span", { class: "gap" }) : el("button", {
    type: "button", "aria-pressed": String(state.kind === c[0]), "data-kind": c[0], ...tooltip(KIND_WORDS[c[0]]),
    onclick: () => { state.kind = c[0]; drawList(); byId("chips").querySelector("[aria-pressed=true]").focus(); updateAddress(); },
  }, c[0], el("b", {}, String(c[1]))))));
}
const KIND_WORDS = {
  right: "Exact or passed.", wrong: "Everything else, unscored traces too.",
  exact: "The first error is found.", early: "A step before the first error is named.", late: "A step after the first error is named.",
  missed: "There is an error, and none is named.", passed: "There is no error, and none is named.", "false alarm": "There is no error, and a step is named.",
  unscored: "There is no usable score.",
  "right pick": "The completion with the highest score is right.", "wrong pick": "The completion with the highest score is wrong.",
  tie: "Several completions share the highest score, right ones and wrong ones.",
};
function traceRow(i, at) {
  const t = details().traces[i], kind = kindOf(i), right = RIGHT.has(kind);
  const strip = isPicks() ? pickStrip(i) : el("span", { class: "strip" }, ...stepLevels(i).map((name, k) => el("i", { class: (name + (k === t.label ? " true" : "")).trim() })));
  return el("button", { type: "button", class: "trace", tabindex: "-1", "data-index": i, onclick: () => { select(at); updateAddress(); } },
    el("span", { class: "mark " + (right ? "right" : "wrong"), "aria-hidden": "true" }, right ? "\u2713" : "\u2717"),
    el("span", { class: "name" }, t.id), el("span", { class: "what" }, kind), strip);
}
function select(at) {
  const buttons = byId("list").querySelectorAll(".trace");
  if (!buttons.length) { byId("detail").replaceChildren(el("p", { class: "empty" }, "No trace matches.")); return; }
  const last = buttons[state.position];
  if (last) { last.removeAttribute("aria-current"); last.tabIndex = -1; }
  state.position = Math.max(0, Math.min(at, buttons.length - 1));
  const now = buttons[state.position];
  now.setAttribute("aria-current", "true");
  now.tabIndex = 0;
  drawDetail(state.rows[state.position]);
  markWideFormulas(byId("detail"));
}
// Moves by keyboard or button; the list scrolls along and keeps the focus if it had it.
function move(step) {
  const inList = byId("list").contains(document.activeElement);
  select(state.position + step);
  const now = byId("list").querySelector("[aria-current]");
  if (now) { now.scrollIntoView({ block: "nearest" }); if (inList) now.focus(); }
  updateAddress();
}

// --- one trace -----------------------------------------------------------------------------------
function drawDetail(i) {
  if (isPicks()) { drawProblem(i); return; }
  const t = details().traces[i], p = protocol(), limit = limitOf(i), predicted = p.predicted[i], text = textOf(i);
  const scores = (run().readouts[p.readout] || [])[i];
  const answer = t.outcome === null ? "" : t.outcome ? "final answer right" : "final answer wrong";
  const verdict = el("p", { class: "verdict" }, "True first error: ", el("b", {}, stepName(t.label)), ". Predicted: ",
    el("b", {}, run().unscored[i] ? "unscored (" + run().unscored[i] + ")" : stepName(predicted)), ". ", el("b", {}, kindOf(i)), ". ",
    [t.subset, answer].filter(Boolean).join(", ") + ".");
  const votes = run().votes ? run().votes[i] : null;
  const classes = stepLevels(i);
  const steps = Array.from({ length: t.k }, (_, k) => {
    const n = votes ? votes.filter((v) => v === k).length : 0;
    return el("li", { class: ("step " + classes[k] + (t.label >= 0 && k > t.label ? " after" : "")).trim() },
      el("span", { class: "index" }, String(k + 1)),
      el("div", {}, el("div", { class: "flags" }, k === t.label ? el("span", { class: "flag true" }, "\u2691 true first error") : null,
        k === predicted ? el("span", { class: "flag guess" }, "\u2690 predicted first error") : null,
        n ? el("span", { class: "flag votes" }, n + " of " + votes.length + " votes") : null),
      el("div", { class: "text" }, ...withFormulas(text ? text.steps[k] : ""))),
      el("span", { class: "score" }, scores ? el("span", { class: "num" }, number(scores[k])) : ""));
  });
  byId("detail").replaceChildren(...[detailTitle(t.id), verdict, votes && votes.length ? tally(votes) : null, ...chart(scores, limit, classes),
    ...problemText(text), el("h3", {}, scores ? "Steps and " + p.readout + " scores" : "Steps"), el("ol", { class: "steps" }, ...steps),
    ...critiques(own(run().critiques, t.id), votes)].filter((x) => x !== null));
}
const problemText = (text) => (text ? [el("h3", {}, "Problem"), el("div", { class: "problem" }, ...withFormulas(text.problem))] : []);
function detailTitle(name) {
  const noun = isPicks() ? "problem" : "trace";
  const pagerButton = (by, label, sign) => el("button", { type: "button", "data-go": String(by), "aria-label": label, title: label + " (" + (by < 0 ? "k" : "j") + ")", onclick: () => move(by), disabled: by < 0 ? state.position === 0 : state.position === state.rows.length - 1 }, sign);
  return el("div", { class: "title" }, el("h2", {}, name), el("span", { class: "pager" }, el("span", {}, (state.position + 1) + " of " + state.rows.length), pagerButton(-1, "Previous " + noun, "\u2190"), pagerButton(1, "Next " + noun, "\u2192")));
}
// What a critic wrote, one text a vote.
function critiques(texts, votes) {
  if (!texts || !texts.length) return [];
  return [el("h3", {}, "What the critic wrote"), ...texts.map((text, i) => el("details", { class: "critique" },
    el("summary", {}, "Critique " + (i + 1) + (votes && i < votes.length ? ": " + stepName(votes[i]) : "")), el("div", { class: "problem" }, ...withFormulas(text))))];
}
// What the critiques say, the commonest first.
function tally(votes) {
  const counts = new Map();
  for (const vote of votes) counts.set(vote, (counts.get(vote) || 0) + 1);
  const rows = [...counts].sort((a, b) => b[1] - a[1] || compareValues(a[0], b[0]));
  return el("div", {}, el("h3", {}, "Critiques"), el("ul", { class: "tally", "aria-label": "Critiques" }, ...rows.map(([vote, n]) => {
    const bar = el("i", { class: vote === null ? "none" : vote < 0 ? "lv-p4" : "lv-n4" });
    bar.style.width = 100 * n / votes.length + "%";
    return el("li", {}, el("span", {}, stepName(vote)), el("span", { class: "bar" }, bar), el("span", {}, n + " of " + votes.length));
  })));
}
function chart(scores, limit, classes) {
  if (!scores || scores.length < 2) return [];
  const all = limit === null ? scores : [...scores, limit];
  const lo = Math.min(...all), hi = Math.max(...all), width = Math.max(280, Math.min(730, byId("detail").clientWidth - 40)), height = 110;
  const x = (k) => 20 + k * (width - 150) / (scores.length - 1), y = (v) => 12 + (hi === lo ? 0.5 : (hi - v) / (hi - lo)) * (height - 36);
  const node = svg("svg", { class: "chart", viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Score by step" });
  if (limit !== null) {
    node.append(svg("line", { class: "limit", x1: 10, x2: width - 120, y1: y(limit), y2: y(limit) }),
      svg("text", { x: width - 115, y: y(limit) + 3 }, "threshold " + number(limit)));
  }
  node.append(svg("path", { class: "path", d: scores.map((v, k) => (k ? "L" : "M") + x(k) + " " + y(v)).join("") }));
  const labelInterval = Math.ceil(scores.length / 20);
  scores.forEach((v, k) => {
    const dot = svg("circle", { cx: x(k), cy: y(v), r: 4.5 });
    if (classes[k]) dot.style.fill = "var(--" + classes[k].slice(3) + ")";
    node.append(dot);
    if (k % labelInterval === 0) node.append(svg("text", { x: x(k), y: height - 3, "text-anchor": "middle" }, String(k + 1)));
  });
  const legend = el("div", { class: "legend" }, el("span", {}, "below threshold"), ...["n4", "n3", "n2", "n1", "p1", "p2", "p3", "p4"].map((n) => el("i", { class: "lv-" + n })), el("span", {}, "above"));
  return limit === null ? [node] : [node, legend];
}
