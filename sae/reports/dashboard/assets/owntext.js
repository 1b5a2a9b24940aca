"use strict";
// A text of the user's own: its tokens, and the latents that fire on them.

const LISTED = 50; // latents that are listed before somebody asks for all

class OwnText {
  constructor(content) {
    const {unpack} = dashboard;
    for (const name of ["tokens", "starts", "texts", "row", "place", "value", "decile"]) this[name] = unpack(content[name]);
    const counted = unpack(content.counted);
    this.counts = (i) => dashboard.bit(counted, i) === 1;
    this.latents = content.latents;
    this.vocabulary = new Vocabulary(content.vocabulary);
  }

  // Latents on a token; on the whole text, each at its strongest. A list of {name, value, decile, tokens}.
  firing(token) {
    const found = new Map();
    for (let i = 0; i < this.row.length; i++) {
      if (token !== undefined && this.row[i] !== token) continue;
      const one = found.get(this.place[i]), tokens = (one?.tokens ?? 0) + 1;
      const best = one && one.value >= this.value[i] ? one : {name: this.latents[this.place[i]], value: this.value[i], decile: this.decile[i]};
      found.set(this.place[i], {...best, tokens});
    }
    return [...found.values()];
  }

  // Activations of a latent by token.
  of(name) {
    const place = this.latents.indexOf(name), found = new Map();
    for (let i = 0; i < this.row.length; i++) if (this.place[i] === place) found.set(this.row[i], this.value[i]);
    return found;
  }

  // Text of each token; a character may not go on from one context to the next.
  words() {
    const words = [];
    this.starts.forEach((start, i) => {
      const ids = this.tokens.subarray(start, this.starts[i + 1] ?? this.tokens.length);
      words.push(...this.vocabulary.texts(ids, 0, ids.length));
    });
    return words;
  }
}

const ORDERS = {
  activation: (a, b) => b.value - a.value,
  decile: (a, b) => (a.decile || 99) - (b.decile || 99) || b.value - a.value, // silent in the records: last
};

// The view of a text: tokens on the left, latents on the right.
function ownTextView(index, vocabulary, text) {
  const chosen = {token: undefined, latent: undefined, order: "activation", all: false};
  const heading = make("h2"), list = make("div"), control = make("div", {class: "control", role: "group", "aria-label": "Order"});
  const box = make("div", {class: "tokens own", dir: "ltr", tabindex: 0, "aria-label": "Your text; arrow keys move, Enter chooses a token"});
  const title = make("span", {class: "faint note"});
  const words = text.words(), tokens = [];
  let paragraph;
  words.forEach((word, i) => {
    if (!paragraph || text.texts.includes(i)) box.append(paragraph = make("p"));
    const kind = ["token", !text.counts(i) && "uncounted", isInvisible(word) && "invisible"].filter(Boolean);
    const token = make("span", {class: kind.join(" ")}, word);
    token.place = i;
    tokens.push(token);
    paragraph.append(token);
    if (word.includes("↵")) paragraph.append(make("br"));
  });

  let values = new Map(), largest = 1;
  function colour() {
    values = chosen.latent === undefined ? new Map() : text.of(chosen.latent);
    const row = index.rows.get(chosen.latent);
    largest = Math.max(row === undefined ? 0 : index.max[row], ...values.values(), 1e-30);
    tokens.forEach((token, i) => {
      const value = values.get(i);
      token.classList.toggle("fires", value > 0);
      if (value > 0) token.style.setProperty("--level", Math.max(8, 100 * value / largest));
      token.classList.toggle("picked", i === chosen.token);
    });
    title.textContent = chosen.latent === undefined ? "" : ` coloured by latent ${chosen.latent}, up to ${number(largest)}`;
  }

  function show() {
    const found = text.firing(chosen.token).sort(ORDERS[chosen.order]);
    const where = chosen.token === undefined ? "your text" : `“${text.vocabulary.name(text.tokens[chosen.token])}”`;
    heading.replaceChildren(`Latents on ${where}`, make("span", {class: "faint note"}, ` ${count(found.length)}${chosen.token === undefined ? ", each at its strongest token; choose a token for its own" : ""}`));
    const rows = (chosen.all ? found : found.slice(0, LISTED)).map((one) => {
      const row = index.rows.get(one.name);
      const colourIt = make("button", {type: "button", class: "more", "data-latent": one.name, "aria-pressed": String(one.name === chosen.latent), title: "Colour the text by this latent"}, "colour");
      const name = row === undefined ? make("span", {class: "faint", title: "silent on the text of the records"}, one.name)
        : make("a", {href: `#/latent/${one.name}`}, one.name);
      const about = row === undefined ? make("span", {class: "faint"}, "silent on the text of the records")
        : make("span", {}, ...index.tokens("by_mass", row).map((token) => chip(vocabulary, token)));
      return make("tr", {class: one.name === chosen.latent ? "picked" : null}, make("td", {}, about), make("td", {class: "number"}, name),
        make("td", {class: "number"}, number(one.value)), make("td", {class: "number"}, one.decile ? String(one.decile) : "–"), make("td", {class: "number"}, colourIt));
    });
    const heads = ["top tokens", "latent", "activation", "decile", ""];
    list.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((name, i) => make("th", {scope: "col", class: i ? "number" : null}, name)))),
      make("tbody", {}, ...rows)));
    if (rows.length < found.length) {
      const more = make("button", {type: "button", class: "all"}, `Show all ${count(found.length)}`);
      more.addEventListener("click", () => { chosen.all = true; show(); });
      list.append(more);
    }
  }
  const redraw = () => { colour(); show(); };
  const choose = (token) => { chosen.token = chosen.token === token ? undefined : token; chosen.all = false; redraw(); };
  const tell = (token) => {
    const i = token.place, value = values.get(i);
    hint.show(token, !text.counts(i) ? "does not count" : chosen.latent === undefined ? "" : `activation ${number(value ?? 0)} of latent ${chosen.latent}`,
      `${text.vocabulary.exact(text.tokens[i])}, token ${text.tokens[i]}`, `token ${i} of your text`);
  };

  for (const order of Object.keys(ORDERS)) {
    const radio = make("input", {type: "radio", name: "order", value: order});
    radio.checked = order === chosen.order;
    radio.addEventListener("change", () => { chosen.order = order; show(); });
    control.append(make("label", {}, radio, ` by ${order}`));
  }
  list.addEventListener("click", (event) => {
    const name = event.target.dataset?.latent;
    if (name === undefined) return;
    chosen.latent = name;
    redraw();
  });
  box.addEventListener("click", (event) => { const token = event.target.closest(".token"); if (token) { cursor = token.place; choose(cursor); } });
  box.addEventListener("pointerover", (event) => { const token = event.target.closest?.(".token"); if (token) tell(token); });
  box.addEventListener("pointerout", hint.hide);
  let cursor = -1;
  box.addEventListener("keydown", (event) => {
    const steps = {ArrowLeft: -1, ArrowRight: 1};
    if (event.key in steps) {
      cursor = Math.min(Math.max(cursor + steps[event.key], 0), tokens.length - 1);
      tokens.forEach((token, i) => token.classList.toggle("told", i === cursor));
      tokens[cursor].scrollIntoView({block: "nearest"});
      tell(tokens[cursor]);
    } else if (event.key === "Enter" && cursor >= 0) choose(cursor);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  box.addEventListener("focusout", () => { hint.hide(); for (const token of tokens) token.classList.remove("told"); });

  chosen.latent = text.firing().sort(ORDERS.activation)[0]?.name;
  redraw();
  const silent = !text.row.length && make("p", {class: "faint"}, "No latent fires on this text.");
  return make("div", {class: "columns"},
    make("section", {class: "card"}, make("h2", {}, "Text", title), box, make("p", {class: "small uncounted"}, "grey: rows that do not count")),
    make("aside", {}, make("section", {class: "card"}, heading, control, list, silent)));
}

// The page: the text that was given with the dashboard, and where it is served, a field for others.
function ownTextPage(index, vocabulary, content) {
  const view = make("div");
  const draw = (given) => {
    const text = new OwnText(given);
    view.replaceChildren(
      make("p", {class: "faint"}, `${count(text.tokens.length)} tokens${text.texts.length > 1 ? ` in ${count(text.texts.length)} texts` : ""}; ${count(text.latents.length)} latents fire. Deciles are those of each latent's own record: 1 is the strongest tenth of its firings.`),
      ownTextView(index, vocabulary, text));
  };
  if (content) draw(content);
  const field = window.live && make("textarea", {rows: 4, "aria-label": "A text", placeholder: "Type a text. An empty line begins a new one.", spellcheck: "false"});
  return make("div", {class: "own-text"}, make("nav", {}, make("a", {href: "#"}, "← All latents")), make("h1", {}, "Your text"),
    field && make("form", {class: "card"}, field, live.button("Show its latents", () => live.ask("live/text", {text: field.value}), draw)), view);
}
