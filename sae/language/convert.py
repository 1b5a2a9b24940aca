"""GGUF files become folders of safetensors, once."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sae.language.quiet import quiet
from sae.progress import progress


def gguf_to_folder(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model in bfloat16 and its tokenizer as `save_pretrained` does."""
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf.name}
    # Weights stay packed where a kernel for them is installed, unless this is said; the first
    # versions of transformers 5 know neither the class nor packed weights.
    packed = getattr(transformers, "GgufConfig", None)
    packing = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    # In percent of the time that each step took with SmolLM2-135M.
    with quiet(), _no_reader_bar(), progress("convert the LM, once", 100, unit="%") as advance:
        config = transformers.AutoConfig.from_pretrained(gguf.parent, **options)
        advance(18)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, config=config, dtype=torch.bfloat16, **options, **packing
        )
        advance(62)
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
        advance(17)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        advance(3)


@contextmanager
def _no_reader_bar() -> Iterator[None]:
    """The GGUF reader shows a tqdm bar whatever transformers is told; it would cut through ours."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    tqdm = getattr(reader, "tqdm", None)
    reader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        reader.tqdm = tqdm
