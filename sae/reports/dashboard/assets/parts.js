"use strict";
// Small parts of pages. Text from outside enters a page here alone, as text nodes.

// An element: attributes, then children (strings become text nodes, null and false nothing).
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  element.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

// A number as people read it, with four digits.
function number(value) {
  if (Number.isNaN(value) || value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}
const count = (value) => value.toLocaleString("en");
const percent = (share) => share > 0 && share < 0.001 ? "< 0.1 %" : `${Number((100 * share).toPrecision(3))} %`;

// A token in a frame of its own, so that spaces and directions stay inside.
function chip(vocabulary, id) {
  const text = vocabulary.name(id);
  return make("span", {class: isInvisible(text) ? "chip invisible" : "chip", title: `${vocabulary.exact(id)}, token ${id}`}, text);
}

// Rows of a small table with a bar behind the last number of each: [first cell, number, further cell …].
function ranking(heading, note, heads, rows) {
  if (!rows.length) return null;
  const largest = Math.max(...rows.map((row) => Math.abs(row[1])), 1e-30);
  const body = make("tbody", {}, ...rows.map(([first, value, ...others]) => {
    const bar = make("td", {class: "number bar"}, number(value));
    bar.style.setProperty("--share", `${100 * Math.abs(value) / largest}%`);
    return make("tr", {}, make("td", {}, first), bar, ...others.map((other) => make("td", {class: "number"}, other)));
  }));
  const head = make("thead", {}, make("tr", {}, ...heads.map((name, i) => make("th", {class: i ? "number" : null, scope: "col"}, name))));
  return make("section", {class: "card"}, make("h3", {}, heading, note && make("span", {class: "faint note"}, ` ${note}`)),
    make("table", {}, head, body));
}

// Do something once what is there is on the screen.
const afterPaint = (action) => requestAnimationFrame(() => setTimeout(action));

// A hint beside what the pointer or the keyboard is on; one for the whole page.
const hint = {
  show(target, ...lines) {
    const box = document.getElementById("hint");
    box.replaceChildren(...lines.map((line) => make("div", {}, line)));
    box.hidden = false;
    const at = target.getBoundingClientRect(), width = box.offsetWidth, height = box.offsetHeight;
    const left = Math.min(Math.max(4, at.left + at.width / 2 - width / 2), document.documentElement.clientWidth - width - 4);
    box.style.left = `${left + scrollX}px`;
    box.style.top = `${(at.top - height - 6 > 0 ? at.top - height - 6 : at.bottom + 6) + scrollY}px`;
  },
  hide() { document.getElementById("hint").hidden = true; },
};
