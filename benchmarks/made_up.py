"""Made-up records of latents on a made-up text; no LM and no SAE."""

from collections.abc import Iterator, Sequence

import numpy as np

from sae.features.record import HISTOGRAM_BINS, INTERVALS, Listed, Record, Shown, Text

SYLLABLES = (
    "ba",
    "co",
    "di",
    "fu",
    "ge",
    "ho",
    "ja",
    "ki",
    "lo",
    "mu",
    "ne",
    "pi",
    "ro",
    "sa",
    "te",
    "vu",
)


def made_up_text(contexts=64, ctx=128, vocabulary: Sequence[bytes] | int = 4096, seed=0) -> Text:
    """A text with Zipf's distribution of tokens; position 0 and every token 0 do not count.

    Args:
        contexts: How many.
        ctx: Tokens in each.
        vocabulary: Bytes of each token, or how many words to make up; one in 19 is a part of a
            character.
        seed: Of the draws.
    """
    if isinstance(vocabulary, int):
        vocabulary = [b"<|endoftext|>", *(_word(i) for i in range(1, vocabulary))]
    rng = np.random.default_rng(seed)
    tokens = (len(vocabulary) ** rng.random((contexts, ctx))).astype(np.int64) - 1
    counted = tokens != 0
    counted[:, 0] = False
    return Text("made-up text, test split", False, tokens, counted, vocabulary)


def _word(i: int) -> bytes:
    if i % 19 == 5:
        return bytes([0xE2, 0x80 + i % 64])  # two bytes of three
    syllables = [SYLLABLES[i >> shift & 15] for shift in (0, 4, 8, 12) if i >> shift or not shift]
    return ((" " if i % 3 else "") + "".join(syllables)).encode()


def made_up_records(text: Text, latents: int, shown=70, seed=0) -> Iterator[Record]:
    """Yield records with the shapes of real ones, densities from 1e-5 to 0.1.

    Args:
        text: Where they fire.
        latents: How many.
        shown: Contexts each, with more firings in a context where the latent is denser.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    contexts, ctx = text.tokens.shape
    for latent in range(latents):
        density = float(10 ** rng.uniform(-5, -1))
        largest = float(rng.lognormal(1.0, 0.7))
        kept = []
        for i in range(shown):
            group = "top" if i < 20 else "interval" if i < shown - 10 else "random"
            interval = 10 if i < 20 else 1 + i % INTERVALS
            firings = 1 + int(rng.poisson(ctx * density / 2))
            at = np.sort(rng.choice(np.arange(1, ctx), min(firings, ctx - 1), replace=False))
            top = largest if i == 0 else largest * (interval - rng.random() * 0.9) / INTERVALS
            values = top * rng.uniform(0.1, 0.9, len(at))
            peak = int(rng.integers(len(at)))
            values[peak] = top
            context = int(rng.integers(contexts))
            kept.append(
                Shown(group, context, int(at[peak]), top, interval, 11 - interval, at, values)
            )
        kept.append(
            Shown("zero", int(rng.integers(contexts)), -1, 0.0, 0, 0, np.zeros(0, int), np.zeros(0))
        )
        tokens = rng.choice(len(text.vocabulary), 9, replace=False)
        heights = 500 * np.exp(-np.arange(HISTOGRAM_BINS) / 8)
        histogram = rng.poisson(heights[:, None] * rng.dirichlet(np.ones(10))[None] + 0.05)
        firings = int(histogram.sum())
        ranked = np.sort(rng.random(10))[::-1]

        def listed(size: int, most: int, values: np.ndarray = ranked) -> Listed:
            return Listed(rng.integers(0, most, size), np.resize(values, size))

        yield Record(
            latent=latent, sign=1, density=density, firings=firings,
            contexts_fired=1 + firings // 2, max=largest, mean=largest / 4,
            interval_counts=histogram.reshape(INTERVALS, -1).sum(1),
            decile_edges=np.linspace(largest, 0, 11), histogram=histogram,
            histogram_tokens=tokens, by_mass=Listed(tokens, ranked[:9]),
            by_mean=listed(10, len(text.vocabulary), largest * ranked),
            positions=rng.poisson(3, ctx),
            co_firing=listed(20, latents, np.sort(rng.integers(1, firings + 2, 20))[::-1]),
            jaccard=np.resize(ranked, 20), top_logits=listed(10, len(text.vocabulary)),
            bottom_logits=listed(10, len(text.vocabulary), -ranked), nearest=listed(10, latents),
            neurons=listed(5, 576), encoder_cosine=float(rng.uniform(0.2, 1)),
            stability=float(rng.random()), contexts=kept,
        )  # fmt: skip
