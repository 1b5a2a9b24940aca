"""`fade`: how clearly single latents stand for labelled concepts."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.labelled import TextActivations, text_activations
from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError, SourceError
from sae.evals.base import Estimate, Measured, Resampled, register
from sae.evals.sparse_probing import TEN_SETS
from sae.explanations.means import mean
from sae.features.faithfulness import FACTORS, PushedTexts
from sae.features.written import Pen
from sae.language.pieces import pieces, token_bytes
from sae.language.text import special_ids
from sae.probing.codes import random_sae
from sae.probing.judge import Judge
from sae.progress import progress
from sae.settings import setting
from sae.tables import Table, Type
from sae.tasks.concept import OPENINGS, snippets
from sae.tasks.labelled import LabelledTexts, probe_sets, read_csv
from sae.types import Split

NUMBERS = ("clarity", "responsiveness", "purity", "faithfulness")
SHUFFLED = "shuffled labels"
TEMPERATURE, BATCH_TEXTS = 0.7, 32
log = logging.getLogger(__name__)
_ROWS: dict[str, tuple[Type, str]] = {
    "set": ("string", ""), "concept": ("string", ""), "dictionary": ("string", ""),
    "latent": ("string", ""), **{name: ("float64", "") for name in NUMBERS},
    "base_rate": ("float64", "share"), "test_texts": ("int64", ""),
    "published_faithfulness": ("float64", ""), "factor": ("float64", "largest activation"),
    "judge_auc": ("float64", ""),
}  # fmt: skip


@register
class FadeEval(Resampled):
    """The four numbers of FADE (arXiv 2502.16994), with labels in the place of an LM that rates.

    A concept is class 1 of a labelled set. On half of the texts the latent is chosen whose largest
    activation in a text tells class 1 from class 0 best (AUROC); on the other half:
    `responsiveness` = 2 AUROC - 1 of class 1 against class 0, `purity` = average precision of the
    same, `clarity` = 2 AUROC - 1 of class 1 against passages of the test text that are as long,
    since the largest of more activations is larger. `faithfulness`: the latent is pushed while the
    LM writes, and a judge of words, fitted to the first half of the texts, says which written texts
    have the concept. Beside the SAE stand single dimensions of the activation (+ and -), random
    directions of which as many fire, and the SAE's latent chosen by shuffled labels
    (docs/guides/probing.md).
    """

    name: ClassVar[str] = "fade"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    sets: tuple[str, ...] = setting(
        TEN_SETS, min_length=2, help="binary sets in the wheel sae-probes, whose class 1 is a "
        "concept each; all: all 113",
    )  # fmt: skip
    csv: str = setting(
        "", help="a CSV file with the columns text,label (two classes), which then is the only set"
    )
    max_texts: int = setting(200, ge=20, help="texts of each class, the first ones")
    max_tokens: int = setting(128, ge=2, help="longer texts lose their end")
    factors: tuple[float, ...] = setting(
        FACTORS, help="pushes of faithfulness, in units of the latent's largest activation; [] "
        "writes nothing",
    )  # fmt: skip
    draws: int = setting(1, ge=1, help="texts that are written after each of 16 openings")
    new_tokens: int = setting(32, ge=1, help="tokens of a written text")
    seed: int = setting(42, ge=0, help="seed of the halves, the passages, directions and texts")

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Choose and measure a latent of each dictionary for each set."""
        (one,) = subjects
        if not isinstance(one.source, LMActivations):
            raise ConfigError("eval=fade needs the tokens behind the activations.")
        sets = [read_csv(self.csv)] if self.csv else probe_sets(self.sets)
        if bad := [s.name for s in sets if len(s.classes) != 2]:
            raise SourceError(f"{', '.join(bad)}: fade takes sets of two classes.")
        passages = self._read(one, "passages", self._passages(one, on))
        rows, writer = [], self._pushed_texts(one)
        with progress("fade", len(sets), "sets") as advance:
            for labelled in sets:
                rows += self._rows(one, labelled.first_of_each(self.max_texts), passages, writer)
                advance(1)
        return Measured(
            metrics=self._metrics(rows),
            tokens={
                "sets": len(rows) // 4,
                "passages": len(passages.lengths),
                "sets with a judge": sum(row["judge_auc"] is not None for row in rows) // 4,
            },
            tables={"sets": Table.of(_ROWS, rows)},
        )

    def _passages(self, one: PlacedSAE, on: Split) -> list[str]:
        """Passages of the test text, as strings without special tokens."""
        store, room = one.source.store(on), self.max_tokens - 1  # a separator stands before a text
        vocabulary = token_bytes(one.lm.tokenizer)
        special = special_ids(one.lm.tokenizer, every=True)
        random = np.random.default_rng(self.seed)
        found = []
        for context in random.permutation(len(store.tokens))[: 2 * self.max_texts]:
            ids = store.tokens[context]
            ids = ids[~np.isin(ids, special)]
            start = int(random.integers(max(1, len(ids) - room + 1)))
            text = "".join(pieces(ids[start : start + room].tolist(), vocabulary)).strip()
            if text:
                found.append(text)
        return found[: self.max_texts]

    def _rows(
        self, one: PlacedSAE, labelled: LabelledTexts, passages: TextActivations,
        writer: PushedTexts | None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        texts = self._read(one, labelled.name, labelled.texts)
        positive = torch.from_numpy(labelled.labels == 1)
        order = torch.randperm(len(positive), generator=torch.Generator().manual_seed(self.seed))
        train, test = order[: len(order) // 2], order[len(order) // 2 :]
        shuffled = positive[train][
            torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed + 1))
        ]
        if len(set(positive[test].tolist())) < 2 or len(set(positive[train].tolist())) < 2:
            raise SourceError(f"{labelled.name} has too few texts of a class in a half.")
        natural = cut(passages, texts.lengths[test][positive[test]])
        f, beside = (strongest(one.sae, of, one) for of in (texts, natural))
        counts = slice(None) if one.counted is None else one.counted.mask([texts.x], None)
        x = texts.x[counts].float()
        l0 = float((one.sae.encode(x[:2048].to(one.sae.device)) != 0).sum(-1).float().mean())
        rival = random_sae(one.sae, l0, x.mean(0), self.seed)
        axes = torch.eye(one.sae.d_in)
        groups = {
            "SAE": (f, beside, positive[train], one.sae.W_dec),
            SHUFFLED: (f, beside, shuffled, one.sae.W_dec),
            "neurons": (
                *(_both_signs(of, one) for of in (texts, natural)), positive[train],
                torch.cat([axes, -axes]),
            ),
            "random": (
                *(strongest(rival, of, one) for of in (texts, natural)), positive[train],
                rival.W_dec,
            ),
        }  # fmt: skip
        from sklearn.metrics import average_precision_score

        judge = None if writer is None else self._judge(one, labelled, train, test)
        found = []
        for name, (values, others, labels, directions) in groups.items():
            latent = int(auroc(values[train], labels).argmax())
            own, truth = values[test, latent], positive[test]
            against = torch.cat([own[truth], others[:, latent]])
            is_concept = torch.arange(len(against)) < int(truth.sum())
            clarity, responsiveness = (
                2 * float(auroc(v[:, None], y)[0]) - 1
                for v, y in ((against, is_concept), (own, truth))
            )
            faithful = None
            if writer is not None and judge is not None:
                largest = float(values[train, latent].max())
                faithful = writer.faithfulness(judge, directions[latent], largest)
            shown = latent - one.sae.d_in if name == "neurons" and latent >= one.sae.d_in else None
            found.append({
                "set": labelled.name, "concept": labelled.classes[1], "dictionary": name,
                "latent": str(latent) if shown is None else f"-{shown}",
                "clarity": clarity, "responsiveness": responsiveness,
                "purity": float(average_precision_score(truth.numpy(), own.numpy())),
                "base_rate": float(truth.float().mean()), "test_texts": len(test),
                "faithfulness": faithful and faithful.value,
                "published_faithfulness": faithful and faithful.published,
                "factor": faithful and faithful.factor,
                "judge_auc": judge and judge.auc,
            })  # fmt: skip
        return found

    def _pushed_texts(self, one: PlacedSAE) -> PushedTexts | None:
        """Writes after neutral openings; None if no factor is given."""
        if not self.factors:
            return None
        return PushedTexts(Pen(
            one, OPENINGS, draws=self.draws, new_tokens=self.new_tokens, temperature=TEMPERATURE,
            seed=self.seed, batch_texts=BATCH_TEXTS,
        ), self.factors)  # fmt: skip

    def _judge(
        self, one: PlacedSAE, labelled: LabelledTexts, train: Tensor, test: Tensor
    ) -> Judge | None:
        """A judge of pieces as long as the written texts; None if it knows too little."""
        halves = [
            snippets(one.lm.tokenizer, labelled, half.tolist(), self.new_tokens)
            for half in (train, test)
        ]
        try:
            return Judge.fit(*halves)
        except ConfigError as error:
            log.warning("%s has no faithfulness: %s", labelled.name, error)
            return None

    def _read(self, one: PlacedSAE, name: str, texts: Sequence[str]) -> TextActivations:
        assert one.point is not None
        return text_activations(
            one.lm, one.point, texts, name=name, which="all", max_tokens=self.max_tokens
        )

    def _metrics(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
        """Means over sets, and how far the SAE is ahead, paired by set; intervals over sets."""
        values = {
            (dictionary, number): np.array(
                [row[number] for row in rows if row["dictionary"] == dictionary], float
            )
            for dictionary in dict.fromkeys(row["dictionary"] for row in rows)
            for number in NUMBERS
        }
        found = {}
        for (dictionary, number), own in values.items():
            if dictionary == "SAE":
                found[number] = Estimate(*mean(own, self.bootstrap))
            else:
                key = f"{number}_over_{dictionary.replace(' ', '_')}"
                found[key] = Estimate(*mean(values["SAE", number] - own, self.bootstrap))
        return found


def cut(texts: TextActivations, lengths: Int[Tensor, " others"]) -> TextActivations:
    """Beginnings of texts, as long as other texts in turn.

    The rows of a beginning are those of the whole text, since a causal LM sees nothing behind it.

    Args:
        texts: Rows of the texts; one that is shorter stays as it is.
        lengths: Rows of the other texts.
    """
    turns = torch.arange(len(texts.lengths)) % len(lengths)
    kept = torch.minimum(texts.lengths, lengths[turns])
    rows = zip(texts.x.split(texts.lengths.tolist()), kept.tolist(), strict=True)
    return TextActivations(torch.cat([x[:count] for x, count in rows]), kept)


@torch.no_grad()
def strongest(
    sae: SAE, texts: TextActivations, placed: PlacedSAE, batch_rows: int = 1024
) -> Float[Tensor, "texts latents"]:
    """Largest activation of each latent in each text, over the tokens that count.

    Args:
        sae: Encodes the rows.
        texts: Their activations.
        placed: The rule for rows that count.
        batch_rows: Rows encoded at once.
    """
    return _largest(lambda x: sae.encode(x.to(sae.device)).float().cpu(), sae.d_sae, texts,
                    placed, batch_rows)  # fmt: skip


def _both_signs(texts: TextActivations, placed: PlacedSAE) -> Float[Tensor, "texts latents"]:
    """Largest value of each dimension of the activation, and of its negative."""

    def both(x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1)

    return _largest(both, 2 * texts.x.shape[1], texts, placed, 1024)


def _largest(
    codes: Any, width: int, texts: TextActivations, placed: PlacedSAE, batch_rows: int
) -> Tensor:
    owner = torch.repeat_interleave(texts.lengths)
    found = torch.full((len(texts.lengths), width), -torch.inf)
    for rows, of in zip(texts.x.split(batch_rows), owner.split(batch_rows), strict=True):
        if placed.counted is not None:
            counts = placed.counted.mask([rows], None)
            rows, of = rows[counts], of[counts]
        if len(rows):
            code = codes(rows.float())
            found.scatter_reduce_(0, of[:, None].expand_as(code), code, "amax")
    return torch.where(torch.isfinite(found), found, 0.0)  # texts without a row that counts


def auroc(
    values: Float[Tensor, "n latents"], positive: Bool[Tensor, " n"]
) -> Float[Tensor, " latents"]:
    """Area under the ROC curve of each column: positives above the others, ties half.

    Example:
        >>> auroc(torch.tensor([[1.0], [2.0], [2.0]]), torch.tensor([False, True, False]))
        tensor([0.7500], dtype=torch.float64)
    """
    ordered = values[~positive].T.double().contiguous().sort(1).values
    wanted = values[positive].T.double().contiguous()
    below = torch.searchsorted(ordered, wanted, side="left")
    not_above = torch.searchsorted(ordered, wanted, side="right")
    return (below + not_above).double().mean(1) / (2 * ordered.shape[1])
