"""Settings of the questions that a chat LM gets about latents, and an estimate of their number."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae.artifacts.placed import PlacedSAE
from sae.chat.local import LOCAL
from sae.chat.messages import Request
from sae.chat.settings import ChatSettings
from sae.errors import ConfigError, unknown
from sae.explanations import prompts, saebench
from sae.explanations.asked import ChatExplainer
from sae.explanations.explainers import EXPLAINERS
from sae.explanations.judges import BATCH, JUDGES, JudgeName, Judges
from sae.explanations.served import require_log_probs
from sae.explanations.summary import SAE
from sae.explanations.truth import TOKENS, TOPICS
from sae.settings import setting

_EXCERPT = "so " * 50
_WINDOW = "so " * 40
_FRAGMENT = [(" so", 0)] * 65
_EXAMPLES = {
    "contexts": prompts.of_contexts([(_EXCERPT, [(" so", 9)] * 3)] * 20),
    "token_pairs": prompts.of_pairs([_FRAGMENT] * 5),
}
"""Requests of a usual length."""


class Asking(ChatSettings):
    """Settings of a chat LM that explains latents and judges explanations."""

    judges: tuple[JudgeName, ...] = setting(
        JUDGES, help="scores by a chat LM: detection (which excerpts fit), fuzzing (which marked "
        "tokens)",
    )  # fmt: skip
    excerpts: int = setting(
        10, ge=5, le=40, help="excerpts with the latent, and as many without, for each explanation"
    )
    dictionaries: tuple[str, ...] = setting(
        ("SAE",), help="dictionaries that it is asked about, by their names on the page (neurons "
        "top-k, frozen decoder); the others are explained and scored without it",
    )  # fmt: skip

    saebench: int = setting(
        0, ge=0, help="latents of the SAE that are explained and scored as SAEBench does; 0: none"
    )
    log_probs: bool = setting(
        False, help="surprisal and simulation are by this server, which must give the "
        "log-probabilities of prompts (vLLM does), and not by the LM under study",
    )  # fmt: skip

    def check(self, explainers: Sequence[str], scorers: Sequence[str] = ()) -> None:
        """Check that explainers have a chat LM to ask, and that its server has a key.

        Args:
            explainers: Names of explainers.
            scorers: Names of the scorers by the LM under study.

        Raises:
            ConfigError: If not.
        """
        for name in explainers:
            if asks(name) and self.base_url is None:
                raise ConfigError(
                    f"The explainer {name} asks a chat LM, and there is none. Give the address of "
                    "a server as eval.autointerp.chat.base_url, or local."
                )
        if self.saebench and self.base_url is None:
            raise ConfigError(
                "eval.autointerp.chat.saebench asks a chat LM, and there is none. Give the address "
                "of a server as eval.autointerp.chat.base_url, or local."
            )
        if self.saebench and SAE not in self.dictionaries:
            raise ConfigError(
                "eval.autointerp.chat.saebench asks about the SAE, which "
                f"eval.autointerp.chat.dictionaries={list(self.dictionaries)} leaves out. Leave "
                "saebench out, or add SAE."
            )
        if self.log_probs and self.base_url in (None, LOCAL):
            raise ConfigError(
                "eval.autointerp.chat.log_probs=true has no effect without a server. Give its "
                "address as eval.autointerp.chat.base_url, or leave log_probs out."
            )
        if self.log_probs and not set(scorers) & {"surprisal", "simulation"}:
            raise ConfigError(
                "eval.autointerp.chat.log_probs=true has no effect without "
                "eval.autointerp.scorers=[surprisal], [simulation] or both. Add them, or leave "
                "log_probs out."
            )
        self.check_key()

    def open(
        self, one: PlacedSAE, explainers: Sequence[str], latents: Mapping[str, int], given: bool
    ) -> Judges | None:
        """Judges and their desk, if there is a chat LM; says first how much will be asked.

        Args:
            one: The SAE, whose LM `local` is.
            explainers: See `expected`.
            latents: Latents of every dictionary that there is, by its name.
            given: See `expected`.

        Raises:
            ConfigError: If a setting names a dictionary that does not exist.
        """
        if self.base_url is None:
            return None
        for name in self.dictionaries:
            if name not in latents:
                raise ConfigError(unknown(name, latents, "eval.autointerp.chat.dictionaries="))
        desk = self.desk(one.lm if self.base_url == LOCAL else None)
        asked = sum(latents[name] for name in dict.fromkeys(self.dictionaries))
        size = expected(self, explainers, asked, latents[SAE] * given)
        desk.announce(*size)
        if self.log_probs:
            require_log_probs(desk)
        return Judges(desk, self.judges, self.excerpts)


def asks(explainer: str) -> bool:
    """Tell whether an explainer asks a chat LM."""
    return issubclass(EXPLAINERS.find(explainer), ChatExplainer)


class Expected(NamedTuple):
    """Size of a piece of work before anything is sent.

    Args:
        requests: Number of requests, including those whose reply is in the ledger.
        prompt_tokens: Tokens that will be read, estimated.
        reply_tokens: Most tokens that will be written.
    """

    requests: int
    prompt_tokens: int
    reply_tokens: int


def expected(asking: Asking, explainers: Sequence[str], latents: int, given: int) -> Expected:
    """The requests of an evaluation, at most.

    Args:
        asking: The settings.
        explainers: Names of all explainers, the control `tokens` among them.
        latents: Number of latents of all dictionaries that are asked about.
        given: Latents of the SAE with an explanation out of a file, at most.
    """
    work: list[tuple[int, Request]] = [
        (latents, _EXAMPLES[name]) for name in explainers if asks(name)
    ]
    # each for another latent as well, but the control; the classes' true ones are
    cases = latents * (2 * len(explainers) - 1) + 2 * (len(TOKENS) + len(TOPICS)) + 2 * given
    sheets = cases * -(-2 * asking.excerpts // BATCH)
    shown = saebench.EXPLAINED[0] + saebench.EXPLAINED[1]
    work.append((asking.saebench, Request((("user", _WINDOW * shown),), 60)))
    work.append((asking.saebench, Request((("user", _WINDOW * shown),), 30)))
    for name in asking.judges:
        work.append((sheets, prompts.of_judge(name, "so " * 15, [_EXCERPT] * BATCH)))
    return Expected(
        sum(count for count, _ in work),
        sum(count * request.prompt_tokens for count, request in work),
        sum(count * request.max_tokens for count, request in work),
    )
