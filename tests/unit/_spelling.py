"""A tiny LM whose vocabulary has words, and codes with planted absorption."""

from typing import Any, NamedTuple

import numpy as np
import torch


def worded_lm(num_words: int = 600, d_model: int = 32) -> Any:
    """A random GPT-2 with a byte-level BPE tokenizer that was trained on made-up words.

    Embeddings of tokens have their first letter, a to h, in dimensions 0 to 7.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from sae.language.lm import LanguageModel
    from sae.language.tiny import SEPARATOR, random_config

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=4)) for _ in range(num_words)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[SEPARATOR], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([f"{one} {one}" for one in words], trainer)
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR)
    config = random_config("gpt2", d_model, 2, 128)
    config.vocab_size = len(fast)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    for token, number in fast.get_vocab().items():
        letter = "abcdefgh".find(token.lstrip("Ġ")[:1] or "-")
        if letter >= 0:
            model.get_input_embeddings().weight.data[number, letter] += 2.0
    return LanguageModel(model, fast, name="worded")


class Planted(NamedTuple):
    """Words of a few letters, and codes that know them."""

    W_dec: torch.Tensor
    x: torch.Tensor
    f: torch.Tensor
    labels: torch.Tensor
    absorbed: torch.Tensor

    def part(self, rows: slice):
        return self.x[rows], self.f[rows], self.labels[rows]


def planted_letters(kind: str, num_words: int = 5000, letters: int = 3, children: int = 20):
    """`none`: a latent a letter fires on all its words. `split`: two latents halve them.

    `absorbed`: on two fifths of the words one of many children fires instead, each of which also
    stands for something of its own.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(letters, (num_words,), generator=generator)
    group = torch.randint(children * 5 // 2, (num_words,), generator=generator)
    own = torch.eye(letters + children)
    x = 4 * own[labels] + 0.05 * torch.randn(num_words, letters + children, generator=generator)
    gone = (group < children) & (kind == "absorbed")
    x[gone] += 3 * own[letters + group[gone]]
    halves = [own[:letters], own[:letters]]
    pairs = torch.cartesian_prod(torch.arange(letters), torch.arange(children))
    child = (4 * own[pairs[:, 0]] + 3 * own[letters + pairs[:, 1]]) / 5
    W_dec = torch.cat([*halves, child])
    f = torch.zeros(num_words, len(W_dec))
    second = (group % 2 == 1) & (kind == "split")
    f[torch.arange(num_words), labels + letters * second] = 4 * (~gone).float()
    f[gone, 2 * letters + labels[gone] * children + group[gone]] = 5
    return Planted(W_dec, x, f, labels, gone)
