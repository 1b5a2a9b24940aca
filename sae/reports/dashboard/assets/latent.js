"use strict";
// The page of one latent.

const TOO_RARE = 20; // contexts in which a latent fires, below which nothing is said about it

async function latentPage(index, vocabulary, row, neighbours) {
  const latent = await index.latentAt(row), largest = index.max[row];
  const contexts = shownContexts(latent, largest);
  const texts = await index.contexts(contexts.map(({context}) => context));
  const page = make("div", {class: "latent"});
  const link = (to, text, attributes = {}) => to === undefined ? make("span", {class: "faint", ...attributes}, text)
    : make("a", {href: `#/latent/${index.name(to)}`, ...attributes}, text);

  page.append(make("nav", {}, make("a", {href: "#"}, "← All latents"),
    (index.ownText || window.live) && make("a", {href: "#/text"}, "Your text"), make("span", {class: "spring"}),
    link(neighbours.before, "← previous", {rel: "prev"}), link(neighbours.after, "next →", {rel: "next"})));
  page.append(make("h1", {}, `Latent ${index.name(row)}`),
    make("p", {class: "faint"}, index.text.name, " ", make("b", {class: "badge"}, index.text.is_training ? "training text" : "test text")));
  page.append(numbers(index, row));

  const strongest = make("div"), side = make("aside"), others = make("div", {class: "others"});
  // A group a frame: a page with forty contexts of one latent never holds up what the reader does.
  let drawn = 0;
  const draw = () => {
    const now = ++drawn, [first, ...rest] = groups(contexts, texts, latent, largest, vocabulary);
    const next = (i) => {
      if (now !== drawn || !others.isConnected) return;
      if (i < rest.length) {
        others.replaceChild(rest[i](), others.children[i] ?? others.appendChild(make("div")));
        afterPaint(() => next(i + 1));
      } else while (others.children.length > i) others.lastChild.remove();
    };
    strongest.replaceChildren(first());
    afterPaint(() => next(0));
  };
  draw();
  page.append(make("div", {class: "columns"}, make("div", {}, windowControl(draw), scale(largest), strongest), side, others));

  const another = (number) => link(index.rows.get(String(number)), String(number));
  const pairs = (name, first = (id) => chip(vocabulary, id)) =>
    Array.from(latent[`${name}_ids`], (id, i) => [first(id), latent[`${name}_values`][i]]);
  const plots = latent.histogram.length && index.firings[row];
  side.append(...[
    plots && histogram(latent, largest, vocabulary),
    make("div", {class: "pair"}, ...[
      ranking("Raises the logits of", "", ["token", "by a unit"], pairs("top_logits")),
      ranking("Lowers the logits of", "", ["token", "by a unit"], pairs("bottom_logits")),
      ranking("Tokens by mass", "", ["token", "share"], pairs("by_mass")),
      ranking("Tokens by mean", "", ["token", "mean"], pairs("by_mean")),
      ranking("Nearest atoms", "", ["latent", "cosine"], pairs("nearest", another)),
      ranking("Fires together with", "", ["latent", "rows", "Jaccard"],
        Array.from(latent.co_firing_ids, (id, i) => [
          another(latent.co_firing_negative[i] ? `-${id}` : id), latent.co_firing_values[i], number(latent.jaccard[i])])),
      ranking("Neurons", "largest entries of the atom", ["index", "entry"], pairs("neurons", String)),
    ].filter(Boolean)),
    contexts.length && ablation(index, vocabulary, latent, index.name(row)),
    plots && profile(latent.positions),
    plots && deciles(latent.decile_edges),
  ].filter(Boolean));
  return page;
}

function numbers(index, row) {
  const density = index.density[row], tiles = [
    ["density", number(density), density > 0 ? `1 in ${count(Math.round(1 / density))} tokens` : "silent on this text"],
    ["firings", count(index.firings[row]), `in ${count(index.contexts_fired[row])} contexts${index.contexts_fired[row] < TOO_RARE ? ": too rare" : ""}`],
    ["max", number(index.max[row]), "activation"],
    ["mean", number(index.mean[row]), "where it fires"],
    ["encoder · atom", number(index.encoder_cosine[row]), "cosine"],
    ["stability", number(index.stability[row]), "cosine in other seeds"],
    ...index.columns.filter(({numbers}) => numbers).map(({heading, numbers}) => [heading, number(numbers[row]), ""]),
  ].filter(([, value]) => value !== "–");
  const texts = index.columns.filter(({texts}) => texts?.[row]);
  const box = make("div", {}, make("div", {class: "tiles"}, ...tiles.map(([label, value, note]) =>
    make("div", {class: "card tile"}, make("span", {class: "faint"}, label), make("b", {}, value), make("span", {class: "faint small"}, note)))));
  for (const {heading, texts: cells} of texts)
    box.append(make("p", {class: "card"}, make("span", {class: "faint"}, `${heading} `), make("span", {class: "cell"}, cells[row])));
  return box;
}

function windowControl(changed) {
  const field = make("input", {type: "number", min: 0, max: 4096, value: Number.isFinite(view.around) ? view.around : 16});
  const whole = make("input", {type: "checkbox"});
  whole.checked = !Number.isFinite(view.around);
  const update = () => {
    field.disabled = whole.checked;
    view.around = whole.checked ? Infinity : Math.max(0, Math.round(field.valueAsNumber) || 0);
    changed();
  };
  field.disabled = whole.checked;
  for (const part of [field, whole]) part.addEventListener("input", update);
  return make("div", {class: "control"}, make("label", {}, "Tokens on each side ", field), make("label", {}, whole, " whole contexts"));
}

function scale(largest) {
  return make("div", {class: "scale faint small"}, "0", make("i"), `${number(largest)} activation`,
    make("span", {}, make("b", {}, "bold"), ": maximum of the context"), make("span", {class: "uncounted"}, "grey: rows that do not count"));
}

// The groups of contexts, strongest first, each as a function that draws it.
function groups(contexts, texts, latent, largest, vocabulary) {
  const drawn = (members) => lines(members, texts, largest, vocabulary);
  const card = (heading, note, members) => () => make("section", {class: "card"},
    make("h2", {}, heading, make("span", {class: "faint note"}, ` ${note}`)), drawn(members));
  const folding = (heading, note, members, open) => members.length > 0 && (() => {
    const box = make("details", {class: "card", open}, make("summary", {}, heading, make("span", {class: "faint note"}, ` ${note}`)));
    const fill = () => { if (box.open && box.children.length === 1) box.append(drawn(members)); };
    fill();
    box.addEventListener("toggle", fill);
    return box;
  });
  const wide = matchMedia("(min-width: 901px)").matches;
  const of = (group) => contexts.filter((shown) => shown.group === group);
  if (!contexts.length) return [() => make("p", {class: "card"}, largest > 0 ? "No contexts were kept." : "It never fires on this text.")];
  const parts = latent.interval_counts.length, firings = latent.interval_counts.reduce((sum, n) => sum + n, 0) || 1;
  const intervals = [];
  for (let i = parts; i >= 1; i--) {
    const note = `${number((i - 1) / parts * largest)} to ${number(i / parts * largest)}: ${percent(latent.interval_counts[i - 1] / firings)} of its firings`;
    const members = of("interval").filter((shown) => shown.interval === i).sort((a, b) => b.value - a.value);
    intervals.push(folding(`Interval ${i}`, note, members, wide) || card(`Interval ${i}`, `${note}; no other contexts`, []));
  }
  return [of("top").length > 0 && card("Strongest contexts", "each once, without duplicates", of("top")), ...intervals,
          folding("Random contexts", `${of("random").length} of all contexts`, of("random"), false),
          folding("Contexts where it never fires", String(of("zero").length), of("zero"), false)].filter(Boolean);
}

function deciles(edges) {
  if (edges.length < 2) return null;
  const rows = Array.from(edges.subarray(1), (edge, i) =>
    make("tr", {}, make("td", {}, String(i + 1)), make("td", {class: "number"}, `${number(edge)} to ${number(edges[i])}`)));
  return make("details", {class: "card"}, make("summary", {}, "Deciles", make("span", {class: "faint note"}, " tenths of its firings, the strongest first")),
    make("table", {}, make("tbody", {}, ...rows)));
}

// What the LM predicts without the latent; where it was not measured, how to get it.
function ablation(index, vocabulary, latent, name) {
  const heading = make("h3", {}, "Without it", make("span", {class: "faint note"}, " mean change of the logits when it is ablated"));
  const box = make("section", {class: "card"}, heading);
  if (!latent.effect.length) {
    if (!index.command) return null;
    if (window.live) {
      box.append(live.button("Measure it (5 to 20 s on a CPU)", () => live.ask("live/ablate", {latent: name}), (answer) => {
        vocabulary.add(answer.vocabulary);
        for (const part of ["effect", "lowered_ids", "lowered_values", "raised_ids", "raised_values"]) latent[part] = dashboard.unpack(answer[part]);
        box.replaceWith(ablation(index, vocabulary, latent, name));
      }));
      return box;
    }
    box.append(make("p", {class: "small"}, "Not measured for this latent. This command measures it:"), make("pre", {class: "command"}, `${index.command} 'eval.dashboard.ablate=[${name}]'`));
    return box;
  }
  const [kl, random, positions, contexts] = latent.effect;
  const pairs = (list) => Array.from(latent[`${list}_ids`], (id, i) => [chip(vocabulary, id), latent[`${list}_values`][i]]);
  box.append(make("p", {class: "small"}, `It is set to zero at ${count(positions)} positions of its ${count(contexts)} strongest contexts, and the SAE's error is kept. KL to the LM's own predictions: `,
    make("b", {}, `${number(kl)} nats`), `; of an equally long step in a random direction: ${number(random)}.`),
    make("div", {class: "pair"}, ranking("Lowered", "", ["token", "change"], pairs("lowered")), ranking("Raised", "", ["token", "change"], pairs("raised"))));
  return box;
}
