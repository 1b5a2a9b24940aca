"""conf/schema.json and docs/reference/configuration.md, derived from the classes of settings.

python -m conf.reference      writes both, after a setting was added or changed
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from conf.help import FILE, SEVERAL
from conf.settings import PARTS, EvaluateSettings, TrainSettings
from sae.registry import Registry
from sae.settings import Settings, allowed, shown

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"
_TITLES = {
    "lm": "LMs", "corpus": "Texts", "activations": "Activations", "sae": "SAEs",
    "baseline": "Baselines", "resample": "Revival of dead latents", "optimizer": "Optimiser",
    "e2e": "End-to-end training", "trainer": "Trainer", "logger": "Logger",
    "callbacks": "Callbacks", "eval": "Evaluations",
}  # fmt: skip
_HEAD = ("| key | default | allowed | |", "|---|---|---|---|")
_PREAMBLE = """# Configuration

Written by `python -m conf.reference` from the classes of settings. `conf/schema.json` says the same
as a JSON schema, by which an editor completes and checks the `config.yaml` of a run.

Everything is set as `key=value` on the command line: `python train.py sae=topk k=32 sae.auxk=0`. A
key that is not set has the default of this page. Files in `conf/` set few others: `python train.py
--cfg job`, with your overrides, shows what holds. How types are read: `2e6` is a whole number, a
number may stand where a text is due; `true` and `"64"` are no numbers.
"""


def parts(group: str) -> Iterator[tuple[str, type[Settings]]]:
    """The parts of a group that come with this project, by name; "" for a group of one class."""
    found: Any = resolve_name(PARTS[group])
    if not isinstance(found, Registry):
        yield "", found
        return
    for name in sorted(found):
        settings = getattr(found[name], "Config", found[name])
        if settings.__module__.split(".")[0] in ("sae", "callbacks"):
            yield name, settings


def schema() -> dict[str, Any]:
    """JSON schema of the configuration of a run; `$defs` has that of each part."""
    definitions: dict[str, Any] = {}
    whole, evaluate = _schema(TrainSettings, definitions), _schema(EvaluateSettings, definitions)
    for group in PARTS:
        node, of_names = ("sae", "architecture") if group == "baseline" else (group, "kind")
        of_names = "architecture" if node == "sae" else of_names
        for name, settings in parts(group):
            one = _schema(settings, definitions)
            if group == "lm":  # resolved when a run begins
                one["properties"]["dtype"]["enum"].append("auto")
            if name and node not in SEVERAL:
                names = {of_names: {"const": name}}
                names |= {"kind": {"const": group}} if group == "baseline" else {}
                one["properties"] = names | one["properties"]
                one["required"] = [*names, *one.get("required", ())]
            definitions[f"{node}.{name}" if name else node] = one
    for node in (name for name in PARTS if name != "baseline"):
        refs = {
            name.partition(".")[2]: {"$ref": f"#/$defs/{name}"}
            for name in definitions
            if name.partition(".")[0] == node
        }
        if node in SEVERAL:
            fits: dict[str, Any] = {"properties": refs, "additionalProperties": False}
        else:
            fits = {"oneOf": [*refs.values(), *([{"type": "null"}] if node == "e2e" else [])]}
        about = whole["properties"][node]
        whole["properties"][node] = {"description": about["description"], **fits}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", **whole,
        "$defs": dict(sorted(definitions.items())) | {"evaluate": evaluate},
    }  # fmt: skip


def _schema(settings: type[Settings], definitions: dict[str, Any]) -> dict[str, Any]:
    one = settings.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= one.pop("$defs", {})
    for entry in (one, *one["properties"].values()):
        entry.pop("title", None)
    one["description"] = _summary(settings)
    for key, field in settings.model_fields.items():
        if field.exclude:  # short for another setting, which has the default
            one["properties"][key].pop("default", None)
    return one


def _summary(settings: type[Settings]) -> str:
    return " ".join((settings.__doc__ or "").split("\n\n")[0].split())


def page() -> str:
    """The reference page."""
    text = [_PREAMBLE, "## train.py\n", _table(TrainSettings)]
    text += ["## evaluate.py\n", _table(EvaluateSettings)]
    for group, title in _TITLES.items():
        text.append(f"## {title}\n")
        for name, settings in parts(group):
            if name:
                text.append(f"### `{_CHOSEN_BY.get(group, group)}={name}`\n")
            text += [f"{_summary(settings)}\n", _table(settings)]
    return "\n".join(text).rstrip() + "\n"


_CHOSEN_BY = {"lm": "lm.kind", "corpus": "corpus.kind", "baseline": "sae"}
"""Keys that choose a part, where that is not the group's name."""


def _table(settings: type[Settings]) -> str:
    rows = _rows(settings, settings.where)
    return (
        "\n".join(["| key | default | allowed | |", "|---|---|---|---|", *rows, ""]) if rows else ""
    )


def _rows(settings: type[Settings], where: str) -> list[str]:
    rows = []
    for key, field in settings.model_fields.items():
        kind, default = field.annotation, field.get_default()
        if isinstance(kind, type) and issubclass(kind, Settings):
            rows += _rows(kind, f"{where}{key}.")
            continue
        value = "–" if field.is_required() else f"`{_value(default)}`"
        fits = allowed(field) or "what its reader allows"
        cells = (f"`{where}{key}`", value, fits, field.description or "")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return '""' if value == "" else shown(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Write both files."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    FILE.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
