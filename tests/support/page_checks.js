// What the browser tests ask of a page. Each function returns the faults it finds, as text.

// Text whose contrast with what lies behind it is under 4.5.
function faint() {
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(c[i] / 255), 0);
  const up = (node) => (node ? [node, ...up(node.parentElement)] : []);
  const behind = (node) => up(node).map((n) => rgb(getComputedStyle(n).backgroundColor)).find((c) => c.length < 4 || c[3] > 0);
  const solid = (node) => up(node).reduce((all, n) => all * getComputedStyle(n).opacity, 1);
  const contrast = (node) => {
    const back = behind(node) || [255, 255, 255], part = solid(node);
    const ink = rgb(getComputedStyle(node).color).slice(0, 3).map((v, i) => part * v + (1 - part) * back[i]);
    const [dark, bright] = [light(ink), light(back)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const written = (node) => [...node.childNodes].some((c) => c.nodeType === Node.TEXT_NODE && c.textContent.trim());
  return [...document.querySelectorAll("body *")].filter((n) => n.checkVisibility() && written(n) && !n.closest("svg, [disabled], option"))
    .filter((n) => contrast(n) < 4.5).map((n) => contrast(n).toFixed(2) + " " + n.className + ": " + n.textContent.slice(0, 40));
}

// Controls, pictures and regions that nothing names.
function nameless() {
  const name = (n) => n.getAttribute("aria-label") || n.alt || n.textContent.trim() || (n.labels && n.labels.length && n.labels[0].textContent.trim());
  return [...document.querySelectorAll("button, input, select, img, [role=region]")].filter((n) => n.checkVisibility() && !name(n)).map((n) => n.outerHTML.slice(0, 200));
}
