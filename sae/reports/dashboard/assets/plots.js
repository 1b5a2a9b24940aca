"use strict";
// Bars in SVG: a page has a few hundred, which needs no plotting library.

const TONES = 10; // colours --tone-0 … in the styles; the last one is for all others

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Stacked bars. `bars`: lists of heights from the bottom; `labels`: [place from 0 to 1, text] below.
// `describe(i)`: lines of the hint of bar i; `choose(i)`: what a click on it does; sizes in pixels.
function stacked({label, bars, labels, describe, choose, tone = (j) => `tone-${j}`, width = 400, height = 120, top}) {
  const foot = 18, gap = bars.length > 100 ? 0 : 1;
  const totals = bars.map((parts) => parts.reduce((sum, part) => sum + part, 0));
  const largest = Math.max(...totals, 1e-30), step = width / bars.length;
  const picture = svg("svg", {viewBox: `0 0 ${width} ${height + foot}`, role: "img", "aria-label": label, class: "plot"});
  bars.forEach((parts, i) => {
    let y = height;
    const group = svg("g", {class: choose ? "bar chosen" : "bar"}, svg("rect", {x: i * step, y: 0, width: step, height, class: "ground"}));
    parts.forEach((part, j) => {
      if (!part) return;
      const tall = Math.max(part / largest * (height - 12), 0.5);
      y -= tall;
      group.append(svg("rect", {x: i * step + gap / 2, y, width: Math.max(step - gap, 0.5), height: tall, class: tone(j)}));
    });
    if (describe) {
      group.addEventListener("pointerenter", () => hint.show(group, ...describe(i)));
      group.addEventListener("pointerleave", hint.hide);
    }
    if (choose) group.addEventListener("click", () => choose(i));
    picture.append(group);
  });
  picture.append(svg("line", {x1: 0, x2: width, y1: height, y2: height, class: "axis"}));
  for (const [place, text] of labels) {
    const anchor = place < 0.05 ? "start" : place > 0.95 ? "end" : "middle";
    picture.append(svg("text", {x: place * width, y: height + 14, "text-anchor": anchor}, text));
  }
  if (top) picture.append(svg("text", {x: 2, y: 9, "text-anchor": "start"}, top(largest)));
  return picture;
}

// Firings by size of the activation, stacked by token: as counts, and as shares of each bin.
function histogram(latent, largest, vocabulary) {
  const tokens = latent.histogram_tokens, columns = tokens.length + 1;
  const bins = latent.histogram.length / columns;
  const bars = Array.from({length: bins}, (_, i) => Array.from(latent.histogram.subarray(i * columns, (i + 1) * columns)));
  const sums = bars.map((parts) => parts.reduce((sum, part) => sum + part, 0));
  const tone = (j) => j === columns - 1 ? "tone-rest" : `tone-${j % TONES}`;
  const name = (j) => j === columns - 1 ? "other tokens" : `“${vocabulary.name(tokens[j])}”`;
  const describe = (i) => {
    const order = bars[i].map((part, j) => [part, j]).filter(([part]) => part).sort(([a], [b]) => b - a);
    return [`${number(i / bins * largest)} to ${number((i + 1) / bins * largest)}: ${count(sums[i])} firings`,
            ...order.slice(0, 6).map(([part, j]) => `${name(j)} ${percent(part / sums[i])}`)];
  };
  const labels = [[0, "0"], [0.5, number(largest / 2)], [1, number(largest)]];
  const shares = bars.map((parts, i) => parts.map((part) => sums[i] ? part / sums[i] : 0));
  const legend = make("ul", {class: "legend"}, ...[...tokens].map((id, j) =>
    make("li", {}, make("i", {class: `tone-${j % TONES}`}), chip(vocabulary, id))),
    make("li", {}, make("i", {class: "tone-rest"}), "others"));
  return make("section", {class: "card"},
    make("h3", {}, "Activations by token", make("span", {class: "faint note"}, " where it fires")),
    stacked({label: "Firings by activation and token", bars, labels, describe, tone, top: (most) => `${count(most)} firings`}),
    make("div", {class: "faint small"}, "Share of each bin"),
    stacked({label: "Share of tokens by activation", bars: shares, labels, describe, tone, height: 70}), legend);
}

// Firings by position; neighbours are summed where there are more than `most` positions.
function profile(positions, most = 128) {
  const size = Math.ceil(positions.length / most), bars = [];
  for (let i = 0; i < positions.length; i += size) bars.push([positions.subarray(i, i + size).reduce((sum, n) => sum + n, 0)]);
  return make("section", {class: "card"}, make("h3", {}, "Positions", make("span", {class: "faint note"}, " firings by position in the context")),
    stacked({label: "Firings by position", bars, labels: [[0, "0"], [1, String(positions.length - 1)]], height: 60,
             describe: (i) => [`position ${i * size}${size > 1 ? ` to ${Math.min((i + 1) * size, positions.length) - 1}` : ""}: ${count(bars[i][0])} firings`]}));
}
