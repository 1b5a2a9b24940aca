"use strict";
// Pages by address: `#` is the table, `#/latent/12` a latent, `#/text` a text of the user's own.

(async () => {
  const pages = {index: document.getElementById("index"), latent: document.getElementById("latent"), text: document.getElementById("text")};
  const failure = document.getElementById("failure");
  const title = document.title;
  let table, row, asked = 0; // `row`: the latent that is shown
  const say = (message) => {
    failure.textContent = message;
    failure.hidden = false;
    show("index");
  };
  const fail = (error) => { console.error(error); say(error.message); };
  const show = (name) => { for (const [other, page] of Object.entries(pages)) page.hidden = other !== name; };
  const go = (to) => { if (to !== undefined) location.hash = `#/latent/${index.name(to)}`; };

  let index, vocabulary;
  try {
    const [columns, tokens] = await Promise.all([dashboard.load("index"), dashboard.load("vocabulary")]);
    index = new Index(columns);
    vocabulary = new Vocabulary(tokens);
    table = new LatentTable(index, vocabulary, go);
  } catch (error) { return fail(error); }
  const hasText = index.ownText || Boolean(window.live);
  document.getElementById("own").hidden = !hasText;

  async function showText(now) {
    try {
      if (!pages.text.firstChild) pages.text.replaceChildren(ownTextPage(index, vocabulary, index.ownText && await dashboard.load("own")));
      if (now !== asked) return;
      show("text");
      document.title = `Your text, ${title}`;
    } catch (error) { if (now === asked) fail(error); }
  }

  function resized() {
    if (pages.index.hidden) return;
    densities(index, (least, most) => {
      table.form.least.value = least.toPrecision(4);
      table.form.most.value = most.toPrecision(4);
      table.refresh();
    });
    table.resized();
  }

  async function route() {
    hint.hide();
    const now = ++asked, name = /^#\/latent\/(-?\d+)$/.exec(location.hash)?.[1];
    const before = row;
    row = name === undefined ? undefined : index.rows.get(name);
    if (location.hash === "#/text" && hasText) return showText(now);
    if (row === undefined) {
      show("index");
      document.title = title;
      resized();
      if (name !== undefined) say(`This dashboard has no latent ${name}.`);
      else failure.hidden = true;
      if (before !== undefined) table.focus(before);
      return;
    }
    const neighbours = {before: table.neighbour(row, -1), after: table.neighbour(row, 1)};
    try {
      const page = await latentPage(index, vocabulary, row, neighbours);
      if (now !== asked) return; // another one was asked for meanwhile
      pages.latent.replaceChildren(page);
      show("latent");
      document.title = `Latent ${name}, ${title}`;
      scrollTo(0, 0);
      for (const next of Object.values(neighbours)) if (next !== undefined) index.latentAt(next).catch(() => {});
    } catch (error) { if (now === asked) fail(error); }
  }

  addEventListener("hashchange", route);
  addEventListener("resize", resized);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches?.("input, textarea"), searches = event.key === "/" && event.target !== table.form.search;
    if (row !== undefined) {
      const steps = {j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1};
      if (event.key === "Escape") location.hash = "#";
      else if (event.key in steps && !typing) go(table.neighbour(row, steps[event.key]));
      else if (searches) { location.hash = "#"; setTimeout(() => table.form.search.focus()); }
      else return;
    } else if (!pages.text.hidden) {
      if (event.key !== "Escape" || typing) return;
      location.hash = "#";
    } else if (searches) table.form.search.focus();
    else if (typing && event.key === "ArrowDown") table.focus();
    else if (typing && event.key === "Escape") { table.form.reset(); table.focus(); }
    else return;
    event.preventDefault();
  });
  await route();
  document.body.dataset.ready = "true";
  afterPaint(() => index.readAhead());
})();
