"""`absorption`: is a feature's latent silent where more specific latents fire instead?"""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.labelled import text_activations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError, SourceError
from sae.evals.base import Estimate, Measured, Resampled, refuse_transcoder, register, sampled
from sae.functional.absorption import absorbed, f1, num_split
from sae.metrics.classification import draws
from sae.probing import linear
from sae.probing.codes import encode
from sae.probing.logistic import sparse_scores
from sae.progress import progress
from sae.settings import setting
from sae.tasks.first_letters import LETTERS, first_letter, prompts, vocabulary_words
from sae.types import Split

log = logging.getLogger(__name__)
_TRAIN_FRACTION = 0.8
_LEAST_PARAMETERS, _LEAST_LATENTS = 1_000_000_000, 16_000


class Letter(NamedTuple):
    """Measurements of one letter.

    Args:
        letter: The letter, in lower case.
        num_test: Test words that begin with it.
        probe_f1: F1 of the probe on the activation.
        latents: Latents of the letter: those that the best k-sparse probe reads.
        sae_f1: F1 of the k-sparse probes, k = 1, 2, ….
        fraction: Absorption fraction of each test word that the probe on the activation finds.
        full: True where such a word is fully absorbed.
    """

    letter: str
    num_test: int
    probe_f1: float
    latents: list[int]
    sae_f1: list[float]
    fraction: Float[Tensor, " words"]
    full: Bool[Tensor, " words"]

    def details(self) -> dict[str, Any]:
        """Plain numbers, by SAEBench's names where it has them; None without such a word."""
        found = len(self.full)
        return {
            "num_test": self.num_test,
            "probe_f1": self.probe_f1,
            "latents": self.latents,
            "sae_f1": self.sae_f1,
            "mean_absorption_fraction": float(self.fraction.mean()) if found else None,
            "full_absorption_rate": float(self.full.double().mean()) if found else None,
            "num_full_absorption": int(self.full.sum()),
            "num_probe_true_positives": found,
            "num_split_features": len(self.latents),
        }


@register
class AbsorptionEval(Resampled):
    """Absorption of first-letter features by SAEBench's protocol and names.

    A linear probe for each letter reads the first letter of a word out of the activation at its
    token; words whose activation does not count are left out. Of the test words that the probe gets
    right: `mean_full_absorption_score` is the share on which all latents of the letter are silent
    and one other latent carries the probe's direction in their place,
    `mean_absorption_fraction_score` how much of that direction others carry; means over letters.
    `mean_num_split_features` is the number of latents a letter has. Formulas:
    `sae.functional.absorption`.
    """

    name: ClassVar[str] = "absorption"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    num_words: int = setting(
        8000,
        ge=1,
        help="words drawn from the LM's vocabulary; four fifths train; SAEBench takes all",
    )
    num_examples: int = setting(10, ge=1, help="words with their letters before each word")
    max_k: int = setting(10, ge=1, help="latents that a letter may have")
    f1_jump: float = setting(0.03, ge=0, lt=1, help="F1 that each further latent must add")
    min_probe_f1: float = setting(
        0.6, ge=0, lt=1, help="letters whose probe does worse do not count"
    )
    min_letters: int = setting(
        20, ge=1, help="with fewer letters that count, the scores are undefined"
    )
    seed: int = setting(42, ge=0, help="seed of the draws and the probes")

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Train the probes, and measure absorption letter by letter."""
        (placed,) = subjects
        refuse_transcoder(placed, self.name)
        sae, point = placed.sae, placed.point
        if point is None or point.site != "resid":
            raise ConfigError(
                f"eval=absorption reads the residual stream at a word's token; this SAE is at "
                f"{placed.ends}. Choose an SAE with site=resid, or other evaluations."
            )
        if self.max_k > sae.d_sae:
            raise ConfigError(
                f"max_k={self.max_k} must be at most {sae.d_sae}, the number of latents."
            )
        words, num_train = self._words(placed)
        rng = np.random.default_rng(self.seed)
        texts = [
            text for part in (words[:num_train], words[num_train:])
            for text in prompts(part, self.num_examples, rng)
        ]  # fmt: skip
        x = text_activations(
            placed.lm, point, texts, name="first letters", which="last",
            max_tokens=placed.lm.max_ctx,
        ).x.float()  # fmt: skip
        labels = torch.tensor([LETTERS.index(first_letter(word)) for word in words])
        if placed.counted is not None:
            counts = placed.counted.mask([x], None)  # no word is a special token
            x, labels, num_train = x[counts], labels[counts], int(counts[:num_train].sum())
        f = encode(sae, x)
        letters, right = measure(
            sae.W_dec.detach(), (x[:num_train], f[:num_train], labels[:num_train]),
            (x[num_train:], f[num_train:], labels[num_train:]),
            max_k=self.max_k, f1_jump=self.f1_jump, seed=self.seed, device=sae.device,
        )  # fmt: skip
        counted = [one for one in letters if one.probe_f1 > self.min_probe_f1]
        if len(counted) < self.min_letters:
            log.warning(
                "Absorption is undefined: %d letters have a probe of F1 above %s at %s; "
                "min_letters=%d. More words (eval.absorption.num_words) make better probes.",
                len(counted), self.min_probe_f1, point, self.min_letters,
            )  # fmt: skip
        parameters = sum(p.numel() for p in placed.lm.model.parameters())
        caveat = size_caveat(parameters, sae.d_sae)
        if caveat:
            log.warning(caveat)
        return Measured(
            metrics=self._scores(counted) | self._of_probes(letters, right),
            tokens={"words": len(x), "test words": len(x) - num_train},
            details={
                "caveat": caveat,
                "words_left_out": len(words) - len(x),
                "letters_counted": [one.letter for one in counted],
                "letters": {one.letter: one.details() for one in letters},
            },
        )

    def _words(self, placed: PlacedSAE) -> tuple[list[str], int]:
        """Training words, then test words; how many are for training."""
        found = vocabulary_words(placed.lm.tokenizer)
        order = np.random.default_rng(self.seed).permutation(len(found))[: self.num_words]
        num_train = int(_TRAIN_FRACTION * len(order))
        if len(order) - num_train < self.num_examples + 2:
            raise SourceError(
                f"{placed.lm.name} has {len(found)} tokens that are words, and num_words="
                f"{self.num_words}: a fifth of the words used must be more than num_examples="
                f"{self.num_examples} + 1. Raise num_words, or lower num_examples."
            )
        return [found[i] for i in order], num_train

    def _scores(self, counted: Sequence[Letter]) -> dict[str, Estimate]:
        """Means and standard deviations over letters; their words are drawn again."""
        values = {
            "absorption_fraction_score": [self._drawn(one, one.fraction) for one in counted],
            "full_absorption_score": [self._drawn(one, one.full.double()) for one in counted],
            "num_split_features": [np.array([float(len(one.latents))]) for one in counted],
        }
        names = [f"{kind}_{name}" for name in values for kind in ("mean", "std_dev")]
        if len(counted) < self.min_letters:
            return dict.fromkeys(names, Estimate(None))
        means = {f"mean_{name}": np.mean(samples, axis=0) for name, samples in values.items()}
        found = sampled(means, self.bootstrap.level)
        for name, samples in values.items():
            spread = np.std([one[0] for one in samples], ddof=1) if len(samples) > 1 else None
            found[f"std_dev_{name}"] = Estimate(None if spread is None else float(spread))
        return {name: found[name] for name in names}

    def _drawn(self, letter: Letter, of_words: Tensor) -> np.ndarray:
        """Mean over a letter's true positives, for each bootstrap draw."""
        seed = self.bootstrap.seed + LETTERS.index(letter.letter)
        weights = draws(len(of_words), self.bootstrap.num_resamples, seed)
        return weights @ of_words.double().numpy() / weights.sum(-1)

    def _of_probes(self, letters: Sequence[Letter], right: Tensor) -> dict[str, Estimate]:
        """Quality of probes for first letters on the LM's activation and on the SAE's latents."""
        weights = draws(len(right), self.bootstrap.num_resamples, self.bootstrap.seed)
        accuracy = weights @ right.double().numpy() / weights.sum(-1)
        means: dict[str, Any] = {
            "mean_probe_f1": [one.probe_f1 for one in letters],
            "mean_sae_f1_k_1": [one.sae_f1[0] for one in letters],
            f"mean_sae_f1_k_{self.max_k}": [one.sae_f1[-1] for one in letters],
        }
        found = sampled({"probe_accuracy": accuracy}, self.bootstrap.level)
        return found | {name: Estimate(float(np.mean(values))) for name, values in means.items()}


Words = tuple[Float[Tensor, "_ d_in"], Float[Tensor, "_ d_sae"], Int[Tensor, " _"]]
"""Activations of words, their codes and the positions of their first letters."""


def measure(
    W_dec: Float[Tensor, "d_sae d_in"],
    train: Words,
    test: Words,
    *,
    max_k: int,
    f1_jump: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[list[Letter], Bool[Tensor, " tests"]]:
    """Every letter that training and test words begin with, and which test words are read right.

    Args:
        W_dec: Decoder.
        train: Words that the probes learn from.
        test: Words that are measured.
        max_k: Latents that a letter may have.
        f1_jump: F1 that each further one must add.
        seed: Seed of the probes.
        device: Device to train them on.

    Raises:
        SourceError: If there is only one such letter.
    """
    (x, f, labels), (x_test, f_test, labels_test) = train, test
    present = sorted(set(labels.tolist()) & set(labels_test.tolist()))
    if len(present) < 2:
        raise SourceError(
            f"Training and test words have {len(present)} first letters in common; absorption "
            "needs two or more. Raise eval.absorption.num_words, or take another LM."
        )
    y = (labels[:, None] == torch.tensor(present)).float()
    probes = linear.train(x, y, linear.ACTIVATIONS, seed, device, "probes of letters")
    by_l1 = linear.train(f, y, linear.LATENTS, seed, device, "latents of letters")
    scores = probes(x_test)
    W_dec = W_dec.float().cpu()
    letters = []
    with progress("first letters", len(present), "letters") as advance:
        for i, label in enumerate(present):
            y_test = labels_test == label
            # not of largest |weight|: a latent of the letter speaks for it
            order = by_l1.weight[i].topk(max_k).indices
            sae_f1 = [
                f1(y_test, sparse_scores(f[:, order[:k]], y[:, i], f_test[:, order[:k]]) > 0)
                for k in range(1, max_k + 1)
            ]
            latents = order[: num_split(sae_f1, f1_jump)]
            found = y_test & (scores[:, i] > 0)
            fraction, full = absorbed(
                x_test[found], f_test[found], W_dec, probes.weight[i], latents
            )
            letters.append(
                Letter(
                    LETTERS[label],
                    int(y_test.sum()),
                    f1(y_test, scores[:, i] > 0),
                    latents.tolist(),
                    sae_f1,
                    fraction,
                    full,
                )  # fmt: skip
            )
            advance(1)
    return letters, torch.tensor(present)[scores.argmax(-1)] == labels_test


def size_caveat(num_parameters: int, d_sae: int) -> str | None:
    """Warning about small LMs and SAEs, as in SAEBench; None where they are large enough.

    Example:
        >>> size_caveat(2_000_000_000, 65_536) is None
        True
    """
    if num_parameters >= _LEAST_PARAMETERS and d_sae >= _LEAST_LATENTS:
        return None
    return (
        f"The LM has {num_parameters / 1e6:,.0f} million parameters and the SAE {d_sae:,} latents. "
        "Absorption is meaningful for LMs of a billion parameters and SAEs of 16 thousand latents "
        "or more; these numbers only compare SAEs of the same LM with each other."
    )
