"""An LM object of your own, where a source of LMs is asked for."""

from sae.language.lm import LanguageModel
from sae.language.text import Tokenizer


class GivenLM:
    """A user's own LM object where a source is asked for.

    Args:
        lm: The LM. Its identity should be a hash of the weights (the default) or name a file.

    Example:
        >>> from sae.language import LMSource
        >>> tiny = LMSource.from_config({"kind": "random", "name": "tiny", "family": "gpt2"}).load()
        >>> mine = GivenLM(LanguageModel(tiny.model, tiny.tokenizer, name="mine"))
        >>> mine.name, mine.identity()["kind"]
        ('mine', 'own')
    """

    kind = "own"

    def __init__(self, lm: LanguageModel):
        self.lm = lm
        self.name = lm.name

    def to_config(self) -> dict[str, object]:
        """Says which LM it was; no config can build it again."""
        return {"kind": self.kind, "name": self.name, **self.identity()}

    def identity(self) -> dict[str, object]:
        """Identity of the LM: everything in it that decides the activations."""
        return dict(self.lm.identity)

    def load(self, device: str = "cpu") -> LanguageModel:
        """The LM itself, moved to `device`."""
        self.lm.model.to(device)
        return self.lm

    def load_tokenizer(self) -> Tokenizer:
        """The LM's tokenizer."""
        return self.lm.tokenizer
