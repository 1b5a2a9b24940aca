"""Writing a dashboard: an index, scripts with the data, and the page that shows them.

    index.html              the page; the last file to appear
    assets/                 styles and scripts of the page
    data/index.js           a column for each number of the table
    data/vocabulary.js      the tokens that are shown anywhere
    data/latents-00000.js   32 latents each
    data/text-00000.js      the contexts that are shown, as token ids
    data/own.js             a text of the user's own, if one was given

`packing` says how numbers are written.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sae.errors import ConfigError
from sae.features.ablated import Ablated
from sae.features.record import NOTHING, Listed, Record, Shown, Text
from sae.reports.dashboard.packing import bits, floats, integers, piece, shares, write_script
from sae.writing import replacing

LATENTS_IN_FILE = 32
TOKENS_IN_FILE = 1 << 19
IN_TABLE = 3
"""Tokens a latent that the table shows and searches, by mass and by logit each."""
_GROUPS = ("top", "interval", "random", "zero")
_ASSETS = Path(__file__).parent / "assets"
Extra = Mapping[str, Mapping[str, float | str]]


def write_dashboard(
    folder: Path,
    records: Iterable[Record],
    text: Text,
    *,
    title: str,
    facts: Mapping[str, str],
    columns: Extra | None = None,
    own_text: Mapping[str, Any] | None = None,
    effects: Mapping[str, Ablated] | None = None,
    command: str = "",
) -> None:
    """Write pages that show latents; `<folder>/index.html` opens them in a browser.

    Equal records give equal bytes. Of the records, only the numbers of the table stay in memory. A
    dashboard that is there already is replaced; until all is written, there is no `index.html`.

    Args:
        folder: Made if it is missing.
        records: Records in the order of the table before it is sorted.
        text: The contexts of the records.
        title: Heading of the page.
        facts: Origin of the numbers, shown under the heading: LM, point, tokens, SAE, …
        columns: Further columns of the table by heading, such as `purity` or `explanation`: numbers
            or texts by `Record.name`. A latent without an entry has an empty cell.
        own_text: A text of the user's own, as `packed_text` gives it; shown on a page of its own.
        effects: Effects of ablating latents by `Record.name`.
        command: Makes the dashboard again; pages without an effect show it with what measures one.
            Empty: they show nothing.

    Raises:
        ConfigError: If the folder holds something else.
        OSError: If the disk refuses a file.
    """
    page, data, assets = folder / "index.html", folder / "data", folder / "assets"
    ours = (data / "index.js").exists() or (assets / "dashboard.css").exists()
    if not ours and (data.exists() or assets.exists()):
        raise ConfigError(
            f"{folder} holds a folder data or assets that is not a dashboard's. Choose another "
            "folder."
        )
    page.unlink(missing_ok=True)
    for old in (data, assets):
        shutil.rmtree(old, ignore_errors=True)
    data.mkdir(parents=True)
    shutil.copytree(_ASSETS, assets, ignore=shutil.ignore_patterns("index.html"))

    index, used, effects = _Index(), _Used(text), effects or {}
    for number, chunk in enumerate(_chunks(records)):
        for record in chunk:
            index.add(record)
            used.add(record, effects.get(record.name))
        write_script(data, f"latents-{number:05d}", _latents(chunk, effects))
    shown = _write_text(data, text, used)
    tokens = np.flatnonzero(used.tokens)
    pieces = [piece(text.vocabulary[token]) for token in tokens.tolist()]
    write_script(data, "vocabulary", {"ids": integers(tokens), "pieces": pieces})
    if own_text is not None:
        write_script(data, "own", own_text)
    write_script(data, "index", {
        "text": {"name": text.name, "is_training": text.is_training, **shown},
        "latents_in_file": LATENTS_IN_FILE, "own_text": own_text is not None,
        "command": command,
        **index.packed(columns or {}),
    })  # fmt: skip
    with replacing(page) as temporary:
        temporary.write_text(render(title, text, facts), encoding="utf-8")


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    remaining = iter(records)
    while chunk := list(islice(remaining, LATENTS_IN_FILE)):
        yield chunk


class _Index:
    """The table, column by column."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.latents: list[int] = []
        self.negative: list[bool] = []
        self.firings: list[int] = []
        self.contexts_fired: list[int] = []
        self.numbers: list[tuple[float, ...]] = []
        self.by_mass: list[np.ndarray] = []
        self.top_logits: list[np.ndarray] = []

    def add(self, record: Record) -> None:
        self.names.append(record.name)
        self.latents.append(record.latent)
        self.negative.append(record.sign < 0)
        self.firings.append(record.firings)
        self.contexts_fired.append(record.contexts_fired)
        stability = np.nan if record.stability is None else record.stability
        self.numbers.append(
            (record.density, record.max, record.mean, record.encoder_cosine, stability)
        )
        self.by_mass.append(_padded(record.by_mass))
        self.top_logits.append(_padded(record.top_logits))

    def packed(self, extra: Extra) -> dict[str, Any]:
        names = ("density", "max", "mean", "encoder_cosine", "stability")
        numbers = np.asarray(self.numbers, np.float64).reshape(-1, len(names))
        return {
            "latent": integers(self.latents),
            "negative": bits(self.negative),
            "firings": integers(self.firings),
            "contexts_fired": integers(self.contexts_fired),
            **{name: floats(numbers[:, i]) for i, name in enumerate(names)},
            "by_mass": integers(np.asarray(self.by_mass)),
            "top_logits": integers(np.asarray(self.top_logits)),
            "columns": [self._column(heading, values) for heading, values in extra.items()],
        }

    def _column(self, heading: str, values: Mapping[str, float | str]) -> dict[str, Any]:
        cells = [values.get(name) for name in self.names]
        if any(isinstance(cell, str) for cell in cells):
            texts = [None if cell is None else str(cell) for cell in cells]
            return {"heading": heading, "texts": texts}
        numbers = [np.nan if cell is None else float(cell) for cell in cells]
        return {"heading": heading, "numbers": floats(numbers)}


def _padded(listed: Listed) -> np.ndarray:
    """The first `IN_TABLE` ids plus 1, then zeros."""
    padded = np.zeros(IN_TABLE, np.int64)
    first = np.asarray(listed.ids[:IN_TABLE]) + 1
    padded[: len(first)] = first
    return padded


class _Used:
    """Contexts and tokens that the pages show."""

    def __init__(self, text: Text) -> None:
        self.contexts = np.zeros(len(text.tokens), bool)
        self.tokens = np.zeros(len(text.vocabulary), bool)

    def add(self, record: Record, effect: Ablated | None) -> None:
        for one in (effect.lowered, effect.raised) if effect else ():
            self.tokens[one.ids] = True
        self.contexts[[shown.context for shown in record.contexts]] = True
        for ids in (
            record.histogram_tokens, record.by_mass.ids, record.by_mean.ids,
            record.top_logits.ids, record.bottom_logits.ids,
        ):  # fmt: skip
            self.tokens[ids] = True


def _latents(records: list[Record], effects: Mapping[str, Ablated]) -> dict[str, list[str]]:
    """Numbers on the pages of some latents that are not in the table: a list for each part."""
    parts = [_latent(record) | packed_effect(effects.get(record.name)) for record in records]
    return {name: [part[name] for part in parts] for name in parts[0]}


def _latent(record: Record) -> dict[str, str]:
    listed = {
        name: getattr(record, name)
        for name in ("by_mass", "by_mean", "top_logits", "bottom_logits", "nearest", "neurons")
    }
    return {
        "interval_counts": integers(record.interval_counts),
        "decile_edges": floats(record.decile_edges),
        "histogram": integers(_stacked(record)),
        "histogram_tokens": integers(record.histogram_tokens),
        "positions": integers(record.positions),
        **{f"{name}_ids": integers(one.ids) for name, one in listed.items()},
        **{f"{name}_values": floats(one.values) for name, one in listed.items()},
        "co_firing_ids": integers(record.co_firing.ids),
        "co_firing_values": integers(record.co_firing.values),
        "co_firing_negative": integers(record.co_firing_negative),
        "jaccard": floats(record.jaccard),
        **_contexts(record.contexts, record.max),
    }


def packed_effect(effect: Ablated | None) -> dict[str, str]:
    """The effect of ablating a latent, as its page reads it; empty if not measured."""
    numbers = () if effect is None else (effect.kl, effect.kl_random, effect.positions,
                                         effect.contexts)  # fmt: skip
    lists = {
        name: NOTHING if effect is None else getattr(effect, name) for name in ("lowered", "raised")
    }
    return {
        "effect": floats(numbers),
        **{f"{name}_ids": integers(one.ids) for name, one in lists.items()},
        **{f"{name}_values": floats(one.values) for name, one in lists.items()},
    }


def _stacked(record: Record) -> np.ndarray:
    """The histogram with exactly one column behind those of `histogram_tokens`."""
    n = len(record.histogram_tokens)
    others = record.histogram[:, n:].sum(1, keepdims=True)
    return np.concatenate([record.histogram[:, :n], others], 1)


def _contexts(contexts: Iterable[Shown], largest: float) -> dict[str, str]:
    """Contexts, a list for each part; positions and values of all of them concatenated."""
    kept = list(contexts)
    none = NOTHING.values
    return {
        "group": integers([_GROUPS.index(shown.group) for shown in kept]),
        "context": integers([shown.context for shown in kept]),
        "peak": integers([shown.peak + 1 for shown in kept]),  # 0: none
        "interval": integers([shown.interval for shown in kept]),
        "decile": integers([shown.decile for shown in kept]),
        "count": integers([len(shown.positions) for shown in kept]),
        "at": integers(np.concatenate([none, *(shown.positions for shown in kept)]).astype(int)),
        "value": shares(np.concatenate([none, *(shown.values for shown in kept)]), largest),
    }


def _write_text(folder: Path, text: Text, used: _Used) -> dict[str, Any]:
    """Write the contexts that are shown, mark their tokens as used, and say where they are."""
    shown = np.flatnonzero(used.contexts)
    ctx = text.tokens.shape[1]
    in_file = max(1, TOKENS_IN_FILE // max(1, ctx))
    counted = np.broadcast_to(text.counted, text.tokens.shape)
    for number, start in enumerate(range(0, len(shown), in_file)):
        rows = shown[start : start + in_file]
        tokens = np.asarray(text.tokens[rows])
        used.tokens[np.unique(tokens)] = True
        write_script(folder, f"text-{number:05d}", {
            "tokens": integers(tokens), "counted": bits(np.asarray(counted[rows])),
        })  # fmt: skip
    return {"ctx": ctx, "contexts_in_file": in_file, "contexts": integers(shown)}


def render(title: str, text: Text, facts: Mapping[str, str], token: str = "") -> str:
    """`index.html`.

    Args:
        title: See `write_dashboard`.
        text: See `write_dashboard`.
        facts: See `write_dashboard`.
        token: Token of the server that serves the page; empty: the page opens from disk.
    """
    environment = Environment(
        loader=FileSystemLoader(_ASSETS), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    template = environment.get_template("index.html")
    return template.render(title=title, text=text, facts=facts, token=token)
