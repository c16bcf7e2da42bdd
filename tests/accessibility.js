// What the page's tests ask a browser: run inside the page by tests/test_app_browser.py.

const CONTROLS = "button, a[href], input, textarea, select, [tabindex='0']";

const parse = (text) => {
  const numbers = text.match(/[\d.]+/g).map(Number);
  return numbers.length > 3 ? numbers : [...numbers.slice(0, 3), 1];
};
const luminance = (colour) => {
  const [red, green, blue] = colour.slice(0, 3).map((value) => {
    const share = value / 255;
    return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
const behind = (node) => {
  const layers = [];
  for (let at = node; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
};
const textOf = (node) => {
  const own = [...node.childNodes].filter((child) => child.nodeType === 3).map((child) => child.textContent.trim());
  return own.join("") || (node.matches("input:not([type=file]):not([type=range]), textarea") ? node.value : "");
};
const shown = (node) => {
  const box = node.getBoundingClientRect();
  return box.width && box.height && node.checkVisibility({ checkVisibilityCSS: true, checkOpacity: true });
};

// Texts whose contrast with what is behind them is below 4.5.
const poorContrast = () => {
  const poor = [];
  for (const node of document.querySelectorAll("body *:not(script, style, noscript)")) {
    const text = textOf(node);
    if (!text || !shown(node)) continue;
    const back = behind(node);
    const front = over(parse(getComputedStyle(node).color), back);
    const [lighter, darker] = [luminance(front), luminance(back)].sort((a, b) => b - a);
    const ratio = (lighter + 0.05) / (darker + 0.05);
    if (ratio < 4.5) poor.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return poor;
};

// What those who do not see a control are told that it is.
const nameOf = (node) => {
  const ids = (node.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
  const texts = (nodes) => nodes.map((one) => one?.textContent.trim() || "").join(" ").trim();
  return (
    node.getAttribute("aria-label") || texts(ids.map((id) => document.getElementById(id))) ||
    texts([...(node.labels || [])]) || node.textContent.trim() || node.title || ""
  );
};
const unnamed = () =>
  [...document.querySelectorAll(CONTROLS)]
    .filter((node) => shown(node) && !nameOf(node))
    .map((node) => node.outerHTML.slice(0, 200));

// The control that has the focus, and how wide the line around it is.
const focused = () => {
  const node = document.activeElement;
  if (!node || node === document.body) return ["", 0];
  const style = getComputedStyle(node);
  const width = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
  return [nameOf(node) || node.outerHTML.slice(0, 200), width];
};
