"use strict";
// Data are scripts in data/: a page that was opened from disk cannot fetch.

const dashboard = (() => {
  const KEPT = 64; // scripts of latents that stay in memory
  const kinds = {B: Uint8Array, H: Uint16Array, I: Uint32Array, f: Float32Array};
  const loaded = new Map(), waiting = new Map();

  function address(name) {
    if (!/^[a-z]+(-\d+)?$/.test(name)) throw new TypeError(`no data of the name ${name}`);
    return `data/${name}.js`;
  }
  // The only place that turns a string into a script; the browser holds the page to that.
  const policy = window.trustedTypes?.createPolicy("dashboard", {createScriptURL: address});

  function receive(name, content) {
    waiting.get(name)?.(content);
    waiting.delete(name);
  }

  function load(name) {
    const known = loaded.get(name);
    if (known) {
      loaded.delete(name); // to the end: the first one is the longest unused
      loaded.set(name, known);
      return known;
    }
    const content = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      waiting.set(name, resolve);
      script.onload = () => script.remove();
      script.onerror = () => {
        loaded.delete(name);
        script.remove();
        reject(new Error(`data/${name}.js is missing or cannot be read.`));
      };
      script.src = policy ? policy.createScriptURL(name) : address(name);
      document.head.append(script);
    });
    loaded.set(name, content);
    const latents = [...loaded.keys()].filter((key) => key.startsWith("latents-"));
    if (latents.length > KEPT) loaded.delete(latents[0]);
    return content;
  }

  const numbered = (kind, number) => load(`${kind}-${String(number).padStart(5, "0")}`);

  // Packed numbers (packing.py): a letter for the type, then base64.
  function unpack(text) {
    if (!text) return new Uint8Array(0);
    const binary = atob(text.slice(1)), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return new kinds[text[0]](bytes.buffer);
  }

  const bit = (bytes, i) => (bytes[i >> 3] >> (i & 7)) & 1;

  return {receive, load, numbered, unpack, bit};
})();

// The table's columns, and where everything else is.
class Index {
  constructor(content) {
    const {unpack} = dashboard;
    for (const name of ["latent", "negative", "firings", "contexts_fired", "density", "max", "mean",
                        "encoder_cosine", "stability", "by_mass", "top_logits"]) this[name] = unpack(content[name]);
    this.columns = content.columns.map(({heading, texts, numbers}) =>
      texts ? {heading, texts} : {heading, numbers: unpack(numbers)});
    this.size = this.latent.length;
    this.latentsInFile = content.latents_in_file;
    this.ownText = content.own_text;
    this.command = content.command;
    this.text = {...content.text, shown: unpack(content.text.contexts)};
    this.inTable = this.size ? this.by_mass.length / this.size : 0;
    this.rows = new Map(Array.from(this.latent, (_, row) => [this.name(row), row]));
    this.signed = this.negative.some((byte) => byte > 0);
  }

  name(row) { return (dashboard.bit(this.negative, row) ? "-" : "") + this.latent[row]; }

  // Token ids of `by_mass` or `top_logits` that the table shows.
  tokens(list, row) {
    const ids = [];
    for (let i = row * this.inTable; i < (row + 1) * this.inTable; i++) if (this[list][i]) ids.push(this[list][i] - 1);
    return ids;
  }

  // Read the text before somebody asks for it, unless it is large.
  readAhead(most = 8) {
    const files = Math.min(most, Math.ceil(this.text.shown.length / this.text.contexts_in_file));
    for (let file = 0; file < files; file++) dashboard.numbered("text", file).catch(() => {});
  }

  async latentAt(row) {
    const packed = await dashboard.numbered("latents", Math.floor(row / this.latentsInFile));
    const place = row % this.latentsInFile;
    return Object.fromEntries(Object.entries(packed).map(([name, values]) => [name, dashboard.unpack(values[place])]));
  }

  // The tokens of some contexts, and which of their positions count: Map of context -> {ids, counts(i)}.
  async contexts(numbers) {
    const {shown, ctx, contexts_in_file: inFile} = this.text, found = new Map(), files = new Map();
    for (const number of new Set(numbers)) {
      const place = position(shown, number), file = Math.floor(place / inFile);
      if (!files.has(file)) files.set(file, []);
      files.get(file).push([number, (place % inFile) * ctx]);
    }
    await Promise.all([...files].map(async ([file, members]) => {
      const content = await dashboard.numbered("text", file);
      content.unpacked ??= {tokens: dashboard.unpack(content.tokens), counted: dashboard.unpack(content.counted)};
      content.tokens = content.counted = "";
      const {tokens, counted} = content.unpacked;
      for (const [number, start] of members) found.set(number, {
        ids: tokens.subarray(start, start + ctx), counts: (i) => dashboard.bit(counted, start + i) === 1,
      });
    }));
    return found;
  }
}

// Where a number stands in an ascending array that holds it.
function position(sorted, number) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < number) low = middle + 1; else high = middle;
  }
  return low;
}
