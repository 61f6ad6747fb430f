// The trace viewer on best-of-N runs: a problem in the place of a trace, with its completions and who picks which.

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const answerName = (n) => (n === null || n === undefined ? "no answer" : "answer " + (n < LETTERS.length ? LETTERS[n] : String(n + 1)));

// A cell per completion: blue for right, orange for wrong, underlined where the protocol picks it.
function pickStrip(i) {
  const picked = protocol().picked[i];
  return el("span", { class: "strip" }, ...details().traces[i].completions.map((c, k) => el("i", { class: (c.right ? "lv-p3" : "lv-n3") + (picked.includes(k) ? " true" : "") })));
}
// The aggregations of the chosen readout, and whether a protocol is one of them.
const readoutOf = (name) => name.split("/")[0];
const isAlike = (p) => readoutOf(p.key) === readoutOf(state.protocol);
function drawProblem(i) {
  const t = details().traces[i], p = protocol(), scores = p.scores[i], text = textOf(i);
  const right = t.completions.filter((c) => c.right).length, picked = p.picked[i];
  const verdict = el("p", { class: "verdict" }, el("b", {}, kindOf(i)), " under ", el("b", {}, p.key), ": ",
    picked.length ? picked.map((k) => t.completions[k].id).join(", ") : "no completion has a score",
    picked.length > 1 ? " share the highest score, and one of them is drawn. " : ". ", right + " of " + t.k + " completions are right. ", t.subset + ".");
  const order = [...t.completions.keys()].sort((a, b) => compareValues(scores[a], scores[b], true) || a - b);
  byId("detail").replaceChildren(detailTitle(t.id), verdict, ...problemText(text), el("h3", {}, "Who picks what"), pickTable(i, isAlike), otherReadouts(i),
    el("h3", {}, "Completions by " + p.key), el("ol", { class: "steps" }, ...order.map((k) => completion(i, k, scores[k], picked.includes(k), text))));
}
function otherReadouts(i) {
  const others = run().protocols.filter((p) => !isAlike(p)).length;
  return others ? el("details", {}, el("summary", {}, others + " protocols of other readouts"), pickTable(i, (p) => !isAlike(p))) : "";
}
function pickTable(i, belongs) {
  const t = details().traces[i];
  const rows = run().protocols.filter(belongs).map((p) => {
    const names = p.picked[i].map((k) => t.completions[k]), kind = data.kinds[p.kind[i]] || "", score = p.picked[i].length ? p.scores[i][p.picked[i][0]] : null;
    return row(el("tr", { class: p.key === state.protocol ? "chosen" : null }, el("td", {}, key(p.key)), el("td", {}, kind), el("td", { class: "long" }, names.length ? names.map((c) => c.id).join(", ") : DASH), el("td", { class: "right num" }, score === null ? DASH : number(score))),
      [p.key, kind, names.length ? names[0].id : null, score]);
  });
  return el("div", {}, ...table("picks/" + benchmark().name + "/" + state.run + "/" + rows[0].values[0], "Picks by protocol", ["Protocol", "Outcome", "Completion", "Score"].map((label, at) => ({ label, isText: at < 3 })), [{ name: "", rows }]));
}
function completion(i, k, score, isPicked, text) {
  const c = details().traces[i].completions[k], others = run().protocols.filter((p) => isAlike(p) && p.key !== state.protocol && p.picked[i].includes(k));
  const facts = [c.right ? "right" : "wrong", answerName(c.answer), c.cut ? "cut at the length limit" : ""].filter(Boolean).join(", ");
  const steps = text ? text.completions[k] : [];
  return el("li", { class: "step completion " + (c.right ? "lv-p1" : "lv-n1") }, el("span", { class: "index mark", "aria-hidden": "true" }, c.right ? "\u2713" : "\u2717"),
    el("div", {}, el("div", { class: "flags" }, isPicked ? el("span", { class: "flag true" }, "picked") : null, ...others.map((p) => el("span", { class: "flag votes" }, "picked by " + p.key.split("/")[1] + (p.picked[i].length > 1 ? ", one of " + p.picked[i].length : "")))),
      el("div", {}, el("b", {}, c.id), " ", facts),
      steps.length ? el("details", {}, el("summary", {}, steps.length + (steps.length === 1 ? " step" : " steps")), ...steps.map((step) => el("div", { class: "text" }, ...withFormulas(step)))) : null),
    el("span", { class: "score num" }, score === null ? "unscored" : number(score)));
}
