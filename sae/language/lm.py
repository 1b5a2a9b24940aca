"""A frozen LM whose activations can be read and replaced at named sites."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.checksums import sha256_of
from sae.errors import ConfigError
from sae.language import sites
from sae.language.generate import continue_texts
from sae.language.hooks import OnPass, Pass, hooked, splices
from sae.language.replay import Replay
from sae.language.text import Tokenizer, separator_id, tokenise
from sae.language.weights import check_embedded
from sae.types import Point

Replacement = Callable[[Tensor], Tensor]


class _Enough(Exception):
    """Ends a forward pass once every wanted activation was seen."""


class LanguageModel:
    """A frozen transformers causal LM with the sites of `sae.types`.

    Args:
        model: Any transformers causal LM of a family in `sites.FAMILIES`. It is put into eval
            mode and its parameters are frozen, in place.
        tokenizer: Its tokenizer.
        name: Name to show to people.
        identity: Identity of its activations, as `LMSource.identity()` says it. Left out, it is
            a hash of the weights.

    Raises:
        SiteError: If the family is not known.

    Example:
        >>> from sae.language import LMSource
        >>> lm = LMSource.from_config({"kind": "random", "name": "tiny", "family": "gpt2"}).load()
        >>> tokens = torch.arange(8).reshape(2, 4)
        >>> lm.capture(tokens, [Point("resid", 1)])[Point("resid", 1)].shape
        torch.Size([2, 4, 32])
        >>> lm.logits(tokens, {Point("mlp_out", 0): torch.zeros_like}).shape
        torch.Size([2, 4, 257])
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str = "own",
        identity: Mapping[str, object] | None = None,
    ):
        self.family = sites.family_of(model)
        config: Any = model.config
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.num_layers: int = len(list(model.get_submodule(self.family.blocks).children()))
        self.d_model: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.max_ctx = longest_ctx(config)
        self.separator_id = separator_id(tokenizer)
        # Hooks see every pass through the model, so passes of other threads wait.
        self._lock = RLock()
        if identity is not None:
            self.identity = dict(identity)

    @cached_property
    def identity(self) -> dict[str, object]:
        """Identity of the activations; JSON-able."""
        return {"kind": "own", "sha256": sha256_of(self.model.state_dict())}

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and so of captured activations."""
        return next(self.model.parameters()).dtype

    def check(self, point: Point) -> None:
        """Raise SiteError, with the allowed values, unless this LM has the point."""
        sites.check(point, self.num_layers, self.family.sites)

    def width(self, point: Point) -> int:
        """Width d of the activation vectors at a point."""
        self.check(point)
        if not sites.is_input(point) or point.site == "mlp_in":
            return self.d_model
        module: Any = sites.module_at(self.model, point)
        # GPT-2 has its own Conv1D, a linear layer that calls its input width nx.
        return module.in_features if isinstance(module, nn.Linear) else module.nx

    def tokens(self, text: str) -> Int[Tensor, "1 ctx"]:
        """Token ids of one text, with the document separator in front, where no word is lost."""
        return torch.tensor([[self.separator_id, *tokenise(self.tokenizer, [text])[0]]])

    @torch.no_grad()
    def capture(
        self,
        tokens: Int[Tensor, "batch ctx"],
        points: Sequence[Point],
        cache: Mapping[str, Any] | None = None,
    ) -> dict[Point, Float[Tensor, "batch ctx d"]]:
        """Activations at `points` from one forward pass, which ends at the last one needed.

        Args:
            tokens: Token ids, nothing padded.
            points: Points in any order; widths may differ.
            cache: Keys and values of what stands before (`new_cache`); those of the tokens are
                added to it, up to the last point.

        Returns:
            Activations by point, in the LM's dtype and on its device.

        Raises:
            SiteError: If a point does not exist.
            ConfigError: If the contexts are longer than the LM allows.
        """
        return self.differentiable_capture(tokens, points, cache=cache)

    def differentiable_capture(
        self,
        tokens: Int[Tensor, "batch ctx"],
        points: Sequence[Point],
        replace: Mapping[Point, Replacement] | None = None,
        cache: Mapping[str, Any] | None = None,
    ) -> dict[Point, Float[Tensor, "batch ctx d"]]:
        """`capture` with other values spliced in, as in `logits`, and with their gradients."""
        found: dict[Point, Tensor] = {}
        wanted = set(points)

        def keep(point: Point) -> OnPass:
            def seen(value: Tensor, _: Pass) -> None:
                found[point] = value
                if len(found) == len(wanted):
                    raise _Enough

            return seen

        if wanted:
            try:
                with (
                    self.hooked(splices(replace)),
                    self.hooked({point: keep(point) for point in wanted}),
                ):
                    self._forward(tokens, cache)
            except _Enough:
                pass
        return {point: found[point] for point in points}

    @torch.no_grad()
    def logits(
        self,
        tokens: Int[Tensor, "batch ctx"],
        replace: Mapping[Point, Replacement] | None = None,
    ) -> Float[Tensor, "batch ctx vocab"]:
        """Next-token logits, with other values spliced in for the activations at some points.

        Args:
            tokens: Token ids, nothing padded.
            replace: Functions by point; each gets the activation [batch ctx d] in the LM's dtype
                and returns what takes its place, of the same shape. A lower point is replaced
                before a higher one is computed.

        Returns:
            Logits in the LM's dtype.

        Raises:
            SiteError: If a point does not exist or a replacement has another shape.
            ConfigError: If the contexts are longer than the LM allows.
        """
        return self.differentiable_logits(tokens, replace)

    def differentiable_logits(
        self,
        tokens: Int[Tensor, "batch ctx"],
        replace: Mapping[Point, Replacement] | None = None,
    ) -> Float[Tensor, "batch ctx vocab"]:
        """`logits` with the gradients of what is spliced in; the LM itself is frozen."""
        with self.hooked(splices(replace)):
            return self._forward(tokens)

    def logits_under(
        self,
        tokens: Int[Tensor, "batch ctx"],
        conditions: Sequence[Mapping[Point, Replacement]],
    ) -> Iterator[Tensor]:
        """`logits` under each of several sets of replacements, one after the other.

        The blocks below all replaced points run once, in the first pass; where a point lies inside
        a block, later passes start at that block.

        Args:
            tokens: Token ids, nothing padded.
            conditions: Replacements of each pass; {} for the clean LM.

        Yields:
            Logits [batch ctx vocab] of each condition, the same as `logits` gives.
        """
        run = self.repeated(tokens, {point for replace in conditions for point in replace})
        for replace in conditions:
            with torch.no_grad():
                found = run(replace)
            yield found
            del found  # the next pass needs the room

    def repeated(
        self,
        tokens: Int[Tensor, "batch ctx"],
        points: Iterable[Point],
        at: Int[Tensor, " batch"] | None = None,
    ) -> Callable[[Mapping[Point, Replacement]], Tensor]:
        """A function that gives `differentiable_logits` of the same tokens, again and again.

        The blocks below all of the points run once, in its first call; where a point lies inside
        a block, later passes start at that block.

        Args:
            tokens: Token ids, nothing padded.
            points: Points where activations will be replaced.
            at: A position of each context, whose logits alone are computed, [batch 1 vocab];
                None: all positions.

        Raises:
            SiteError: If a point does not exist.
        """
        points = set(points)
        for point in points:
            self.check(point)
        replay = Replay(sites.blocks_below(self.model, points))

        def run(replace: Mapping[Point, Replacement]) -> Tensor:
            with (
                self._lock, replay.one_pass(), self._logits_at(at), self.hooked(splices(replace)),
            ):  # fmt: skip
                return self._forward(tokens)

        return run

    def variants(
        self, tokens: Int[Tensor, "1 ctx"], start: Point, end: Point | None = None
    ) -> tuple[Float[Tensor, "1 ctx d"], Callable[[Tensor], Tensor]]:
        """The activation of one context at a point, and a function to run variants of it.

        The blocks below `start` run once, in this call; the function runs those above, up to `end`.

        Args:
            tokens: Token ids of the context.
            start: Point of the variants.
            end: Point of what the function returns; None: the logits of the last token.

        Returns:
            The activation, and the function: it takes variants [n ctx d] of the activation and
            returns what each makes at `end`, [n ctx d_end], or the logits of the last token,
            [n 1 vocab], with gradients.

        Raises:
            SiteError: If a point does not exist.
            ConfigError: If the context is longer than the LM allows.
        """
        self.check(start)
        replay = Replay(sites.blocks_below(self.model, [start]))
        with self._lock, replay.one_pass():
            clean = self.capture(tokens, [start])[start]

        def run(variants: Tensor) -> Tensor:
            many, replace = tokens.expand(len(variants), -1), {start: lambda _: variants}
            with self._lock, replay.one_pass(len(variants)):
                if end is not None:
                    return self.differentiable_capture(many, [end], replace)[end]
                last = torch.full((len(variants),), tokens.shape[1] - 1)
                with self._logits_at(last), self.hooked(splices(replace)):
                    return self._forward(many)

        return clean, run

    @contextmanager
    def _logits_at(self, at: Tensor | None) -> Iterator[None]:
        """Let the unembedding, a fifth of a small LM's work, see one position of each context."""
        if at is None:
            yield
            return
        rows = torch.arange(len(at), device=self.device)

        def one(module: nn.Module, inputs: tuple) -> tuple:
            return (inputs[0][rows, at.to(self.device)][:, None], *inputs[1:])

        model: Any = self.model
        handle = model.get_output_embeddings().register_forward_pre_hook(one)
        try:
            yield
        finally:
            handle.remove()

    def _forward(self, tokens: Tensor, cache: Mapping[str, Any] | None = None) -> Tensor:
        if tokens.shape[1] > self.max_ctx:
            raise ConfigError(
                f"Contexts of {tokens.shape[1]} tokens are longer than {self.name} allows. "
                f"Set ctx to at most {self.max_ctx}."
            )
        check_embedded(tokens, self.model, self.tokenizer, self.name)
        ids = tokens.to(self.device, torch.long)
        return self.model(ids, use_cache=cache is not None, **(cache or {})).logits

    @contextmanager
    def hooked(self, functions: Mapping[Point, OnPass]) -> Iterator[None]:
        """Call a function on the activation at each point, in every pass inside.

        Args:
            functions: Functions by point; their results replace the activations.

        Raises:
            SiteError: If a point does not exist.
        """
        for point in functions:
            self.check(point)
        with self._lock, hooked(self.model, functions):
            yield

    def generate(
        self,
        texts: str | Sequence[str],
        *,
        new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        use_cache: bool = True,
    ) -> list[str]:
        """Continue texts (`sae.language.generate`); inside `sae.intervene` with its edits.

        Args:
            texts: One text or several; a document separator is put before each.
            new_tokens: Tokens that are written, whatever they are.
            temperature: 0 takes the likeliest token.
            seed: Seed of the draws.
            use_cache: True if keys and values are kept.

        Raises:
            ConfigError: If the text grows longer than the LM allows.
        """
        with self._lock:
            return continue_texts(
                self, [texts] if isinstance(texts, str) else texts, new_tokens=new_tokens,
                temperature=temperature, seed=seed, use_cache=use_cache,
            )  # fmt: skip


def longest_ctx(config: Any) -> int:
    """Tokens in the longest context of an LM with this transformers configuration."""
    names = ("max_position_embeddings", "seq_length", "max_seq_len")
    given = (getattr(config, name, None) for name in names)
    # Bloom's positions are unlimited (ALiBi); 2048 is what all of its sizes were trained with.
    return next((number for number in given if number), 2048)
