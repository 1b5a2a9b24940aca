"""Explanations of a dictionary's latents: by explainers, and out of a file."""

from collections.abc import Mapping, Sequence

import torch

import sae.explanations.tested  # noqa: F401  # registers its explainer
from sae.artifacts.placed import PlacedSAE
from sae.chat.desk import Desk
from sae.explanations.budget import Budget
from sae.explanations.explainers import EXPLAINERS, Explanation, TrainingText, Unexplained
from sae.explanations.latents import Latent, Subject
from sae.features.plain import words
from sae.features.shown import Text
from sae.features.weights import LOGITS, written_at
from sae.language.lm import LanguageModel
from sae.language.logit_lens import direct_logits, has_direct_path

GIVEN = "given"
"""Name of the explanations out of a file."""


def explained(
    subject: Subject, text: TrainingText, explainers: Sequence[str],
    given: Mapping[str, str] | None = None, desk: Desk | None = None,
    budget: Budget | None = None,
) -> dict[str, list[Explanation | Unexplained]]:  # fmt: skip
    """One explanation of each latent by explainer, or the reason why there is none.

    Args:
        subject: The latents.
        text: The training text.
        explainers: Their names.
        given: Explanations out of a file, by the name of the latent.
        desk: Sends requests to the chat LM that some explainers need.
        budget: Tokens that the LM under study may read for some explainers; None: as many as it
            takes.
    """
    found: dict[str, list[Explanation | Unexplained]] = {}
    for name in explainers:
        explainer = EXPLAINERS.find(name)(text, subject.reader, budget)
        found[name] = explainer.explained(subject.latents, desk)
    if given is not None:
        found[GIVEN] = [
            Explanation(given[latent.name]) if latent.name in given else "not given"
            for latent in subject.latents
        ]
    return found


def raised_tokens(
    latents: Sequence[Latent], one: PlacedSAE, lm: LanguageModel, text: Text
) -> list[list[str]]:
    """The tokens that the atom of each latent raises most; none without a direct path.

    Args:
        latents: Latents by the names that `name_of` gives them.
        one: The dictionary.
        lm: The LM whose unembedding is used.
        text: Its vocabulary.
    """
    point = written_at(one.ends)
    if point is None or not has_direct_path(lm, point) or not latents:
        return [[] for _ in latents]
    of = torch.tensor([int(latent.name.removeprefix("-")) for latent in latents])
    sign = torch.tensor([-1.0 if latent.name.startswith("-") else 1.0 for latent in latents])
    atoms = one.sae.W_dec[of.to(one.sae.device)].float() * sign[:, None].to(one.sae.device)
    top = direct_logits(lm, atoms, point).topk(LOGITS, dim=1).indices.cpu().numpy()
    return [words(ids, text) for ids in top]
