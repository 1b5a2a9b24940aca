"use strict";
// The table of all latents: SlickGrid draws the rows in sight, over the columns as they were loaded.

class LatentTable {
  constructor(index, vocabulary, open) {
    Object.assign(this, {index, vocabulary, open});
    this.order = Uint32Array.from({length: index.size}, (_, row) => row);
    this.sorted = {id: "row", ascending: true};
    this.form = document.getElementById("filters");
    const columns = this.columns();
    this.byId = new Map(columns.map((column) => [column.id, column]));
    this.grid = new Slick.Grid("#table", {getLength: () => this.order.length, getItem: (i) => ({row: this.order[i]})},
      columns.map((column) => ({...column, minWidth: column.width})), {enableHtmlRendering: false, enableColumnReorder: false, enableTextSelectionOnCells: true, rowHeight: 32,
                fullWidthRows: true, forceFitColumns: true, nonce: "slickgrid"});
    this.grid.onSort.subscribe((_, {sortCol, sortAsc}) => {
      this.sorted = {id: sortCol.id, ascending: sortAsc};
      this.refresh();
    });
    this.grid.onClick.subscribe((event, {row}) => { if (!event.target.closest("a")) open(this.order[row]); });
    this.grid.onKeyDown.subscribe((event, {row}) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      open(this.order[row]);
    });
    this.form.addEventListener("input", () => this.refresh());
    this.form.addEventListener("reset", () => setTimeout(() => this.refresh()));
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.focus(); });
    this.refresh();
  }

  columns() {
    const {index, vocabulary} = this;
    const numeric = (id, name, values, width = 92, shown = number) => ({
      id, name, width, sortable: true, cssClass: "number", headerCssClass: "number", key: (row) => values[row],
      formatter: (_r, _c, _v, _d, {row}) => shown(values[row]),
    });
    const chips = (id, name, width) => ({
      id, name, width, sortable: true, key: (row) => index.tokens(id, row).map((token) => vocabulary.name(token).trim()).join(" "),
      formatter: (_r, _c, _v, _d, {row}) => make("span", {}, ...index.tokens(id, row).map((token) => chip(vocabulary, token))),
    });
    const link = {
      id: "row", name: "latent", width: 84, sortable: true, cssClass: "number", headerCssClass: "number", key: (row) => row,
      formatter: (_r, _c, _v, _d, {row}) => make("a", {href: `#/latent/${index.name(row)}`, tabindex: -1}, index.name(row)),
    };
    const known = (values) => values.some((value) => !Number.isNaN(value));
    const untied = index.encoder_cosine.some((value) => value < 0.9999);
    return [
      link, chips("by_mass", "top tokens", 210), numeric("density", "density", index.density),
      numeric("max", "max", index.max), numeric("mean", "mean", index.mean),
      index.top_logits.some((id) => id) && chips("top_logits", "raises the logits of", 250),
      untied && numeric("encoder_cosine", "encoder · atom", index.encoder_cosine, 124),
      known(index.stability) && numeric("stability", "stability", index.stability),
      ...index.columns.map(({heading, texts, numbers}, i) => numbers ? numeric(`extra-${i}`, heading, numbers) : {
        id: `extra-${i}`, name: heading, width: 280, sortable: true, key: (row) => texts[row] ?? "",
        formatter: (_r, _c, _v, _d, {row}) => make("span", {class: "cell"}, texts[row] ?? ""),
      }),
    ].filter(Boolean);
  }

  // Keep the rows that pass the filters, in the chosen order.
  refresh() {
    const {index, form} = this;
    const limit = (field, otherwise) => {
      const value = field.value.trim() === "" ? otherwise : Number(field.value);
      field.setAttribute("aria-invalid", Number.isNaN(value));
      return Number.isNaN(value) ? otherwise : value;
    };
    const least = limit(form.least, -Infinity), most = limit(form.most, Infinity);
    const passes = this.search(form.search.value);
    const kept = [];
    for (let row = 0; row < index.size; row++)
      if (index.density[row] >= least && index.density[row] <= most && passes(row)) kept.push(row);
    this.order = this.inOrder(kept);
    form.count.textContent = `${count(kept.length)} of ${count(index.size)} latents`;
    this.grid.invalidate();
    this.grid.updateRowCount();
    this.grid.scrollRowToTop(0);
  }

  // A number finds the latent of that name; anything else, tokens that hold it and texts of further columns.
  search(text) {
    const wanted = text.toLowerCase(), {index, vocabulary} = this;
    if (!wanted) return () => true;
    if (/^-?\d+$/.test(wanted) && index.rows.has(wanted)) {
      const found = index.rows.get(wanted);
      return (row) => row === found;
    }
    const holds = vocabulary.holding(wanted);
    const texts = index.columns.filter((column) => column.texts).map((column) => column.texts);
    return (row) => {
      for (let i = row * index.inTable; i < (row + 1) * index.inTable; i++)
        if (holds.has(index.by_mass[i] - 1) || holds.has(index.top_logits[i] - 1)) return true;
      return texts.some((cells) => cells[row]?.toLowerCase().includes(wanted));
    };
  }

  inOrder(rows) {
    const {id, ascending} = this.sorted, {key} = this.byId.get(id), way = ascending ? 1 : -1;
    if (id === "row") return Uint32Array.from(ascending ? rows : rows.reverse());
    const keys = new Map(rows.map((row) => [row, key(row)]));
    const missing = (value) => value === "" || Number.isNaN(value);
    const collator = new Intl.Collator();
    return Uint32Array.from(rows.sort((first, second) => {
      const a = keys.get(first), b = keys.get(second);
      if (missing(a) || missing(b)) return missing(a) - missing(b) || first - second; // empty cells stay below
      return way * (typeof a === "string" ? collator.compare(a, b) : a - b) || first - second;
    }));
  }

  // Put the keyboard on a row: on that of a latent, else on the first one in sight.
  focus(row) {
    if (!this.order.length) return;
    const place = row === undefined ? this.grid.getViewport().top : this.order.indexOf(row);
    if (place >= 0) this.grid.gotoCell(place, 0);
  }

  resized() {
    this.grid.resizeCanvas();
    this.grid.autosizeColumns();
  }

  // The latent that comes `step` places after a row in the table's order.
  neighbour(row, step) {
    const place = this.order.indexOf(row);
    return place < 0 ? undefined : this.order[place + step];
  }
}

// Histogram of log10 density; a click keeps a bar's latents.
function densities(index, choose) {
  const PARTS = 4, alive = index.density.filter((value) => value > 0);
  const silent = index.size - alive.length;
  const box = document.getElementById("densities");
  if (!alive.length) return box.replaceChildren("No latent fires on this text.");
  const edge = (value) => Math.floor(Math.log10(value) * PARTS);
  const low = alive.reduce((least, value) => Math.min(least, edge(value)), 0);
  const high = alive.reduce((most, value) => Math.max(most, edge(value)), low);
  const bars = Array.from({length: high - low + 1}, () => [0]);
  for (const value of alive) bars[edge(value) - low][0]++;
  const at = (i) => 10 ** ((low + i) / PARTS), end = bars.length;
  const labels = [];
  for (let power = Math.ceil(low / PARTS); power * PARTS <= low + end; power++)
    labels.push([(power * PARTS - low) / end, power === 0 ? "1" : `1e${power}`]);
  return box.replaceChildren(
    make("h3", {}, "Densities", make("span", {class: "faint note"},
      ` share of the rows on which a latent fires${silent ? `; ${count(silent)} latents are silent` : ""}; click a bar to see its latents`)),
    stacked({label: "Latents by density", bars, labels, width: Math.max(300, box.clientWidth - 34), height: 90, tone: () => "tone-0", top: (most) => `${count(most)} latents`,
             describe: (i) => [`${number(at(i))} to ${number(at(i + 1))}: ${count(bars[i][0])} latents`],
             choose: (i) => choose(at(i), at(i + 1))}));
}
