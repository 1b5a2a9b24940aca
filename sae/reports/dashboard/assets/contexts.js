"use strict";
// Contexts of a latent: tokens around the strongest one, coloured by activation.

const STEPS = 65535; // packing.py: values are steps of a 65,535th of the maximum
const GROUPS = ["top", "interval", "random", "zero"];
const view = {around: 16}; // tokens on each side; Infinity for whole contexts

// The contexts of a latent, one object each.
function shownContexts(latent, largest) {
  let start = 0;
  return Array.from(latent.context, (context, i) => {
    const end = start + latent.count[i];
    const firing = new Map();
    for (let j = start; j < end; j++) firing.set(latent.at[j], latent.value[j] / STEPS * largest);
    start = end;
    const peak = latent.peak[i] - 1;
    return {context, peak, firing, group: GROUPS[latent.group[i]], interval: latent.interval[i],
            decile: latent.decile[i], value: peak < 0 ? 0 : firing.get(peak)};
  });
}

// Lines of some contexts. `largest` is the latent's maximum: one scale for all of them.
function lines(contexts, texts, largest, vocabulary) {
  const list = make("ol", {class: "contexts"}), known = new WeakMap();
  for (const shown of contexts) {
    const line = make("li", {tabindex: 0});
    known.set(line, shown);
    draw(line, shown, view.around);
    list.append(line);
  }

  function draw(line, shown, around) {
    const {ids, counts} = texts.get(shown.context);
    const middle = Math.max(shown.peak, 0);
    const start = Math.max(0, middle - around), end = Math.min(ids.length, middle + around + 1);
    const words = vocabulary.texts(ids, start, end), tokens = make("span", {class: "tokens", dir: "ltr"});
    const more = (side) => {
      const button = make("button", {type: "button", class: "more", title: "Show the whole context", "aria-label": `Whole context, ${side}`}, "…");
      button.addEventListener("click", () => { draw(line, shown, Infinity); line.focus(); });
      return button;
    };
    if (start > 0) tokens.append(more("before"));
    words.forEach((word, i) => {
      const place = start + i, value = shown.firing.get(place);
      const kind = [value > 0 && "fires", place === shown.peak && "peak", !counts(place) && "uncounted", isInvisible(word) && "invisible"];
      const token = make(value > 0 ? "mark" : "span", {class: ["token", ...kind.filter(Boolean)].join(" ")}, word);
      if (value > 0) token.style.setProperty("--level", Math.max(8, 100 * value / largest));
      token.place = place;
      tokens.append(token);
    });
    if (end < ids.length) tokens.append(more("after"));
    line.replaceChildren(make("span", {class: "value"}, shown.peak < 0 ? "–" : number(shown.value)), tokens);
  }

  function tell(token) {
    const line = token.closest("li"), shown = known.get(line), {ids, counts} = texts.get(shown.context);
    const place = token.place, value = shown.firing.get(place);
    hint.show(token, counts(place) ? `activation ${number(value ?? 0)}` : "does not count",
      `${vocabulary.exact(ids[place])}, token ${ids[place]}`,
      `position ${place} of context ${shown.context}` + (place === shown.peak ? `, interval ${shown.interval}, decile ${shown.decile}` : ""));
    list.querySelector(".told")?.classList.remove("told");
    token.classList.add("told");
  }

  const over = (event) => { const token = event.target.closest?.(".token"); if (token) tell(token); };
  list.addEventListener("pointerover", over);
  list.addEventListener("click", over);
  list.addEventListener("pointerout", hint.hide);
  list.addEventListener("focusin", (event) => { const peak = event.target.querySelector?.(".peak"); if (peak) tell(peak); });
  list.addEventListener("focusout", () => { hint.hide(); list.querySelector(".told")?.classList.remove("told"); });
  // Left and right walk through the tokens on which it fires, up and down through the contexts.
  list.addEventListener("keydown", (event) => {
    const line = event.target.closest("li"), steps = {ArrowLeft: -1, ArrowRight: 1};
    if (event.key in steps) {
      const firing = [...line.querySelectorAll(".fires")];
      const next = firing[firing.indexOf(line.querySelector(".told")) + steps[event.key]];
      if (next) tell(next);
    } else if (event.key === "ArrowDown") line.nextElementSibling?.focus();
    else if (event.key === "ArrowUp") line.previousElementSibling?.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return list;
}
