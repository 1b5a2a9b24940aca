"""Load what `save_pretrained` wrote, or draw random weights for the same architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sae.errors import SAEError, SourceError
from sae.intact import require_content, visible
from sae.language.quiet import first_line, quiet
from sae.language.text import Tokenizer
from sae.language.weights import MODEL_OPTIONS, config_of, trained_model

_LM_FILES = (".json", ".safetensors", ".bin", ".model", ".txt")


def random_like(config: Any, seed: int, dtype: torch.dtype) -> nn.Module:
    """An untrained LM of a configuration, as its family starts training, whatever the device.

    Args:
        config: A transformers configuration; its `initializer_range` is the standard deviation
            of matrices and embeddings. Biases start at 0, norms at 1.
        seed: Seed of the draw, which leaves torch's global stream as it was.
        dtype: The weights are drawn in float32 and then rounded to it.
    """
    from transformers import AutoModelForCausalLM

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **MODEL_OPTIONS)
    return model.to(dtype)


def model_in(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The LM in a folder, in this dtype."""
    _require_contents(folder)

    def load() -> nn.Module:
        return trained_model(folder, dtype=dtype)

    with quiet():
        return explained(load, f"The LM in {folder}", "Save it again with save_pretrained.")


def config_in(folder: Path) -> Any:
    """The transformers configuration in a folder."""
    _require_contents(folder)
    what = f"The configuration in {folder}"
    return explained(lambda: config_of(folder), what, "Save the LM again.")


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer in a folder."""
    from transformers import AutoTokenizer

    _require_contents(folder)

    def load() -> Tokenizer:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    remedy = "Save the tokenizer into the same folder with save_pretrained."
    with quiet():
        return explained(load, f"The tokenizer in {folder}", remedy)


def explained(load: Callable[[], Any], what: str, remedy: str) -> Any:
    """The result of `load`, or an error that says what did not load and what to do.

    Raises:
        SourceError: For whatever transformers raises.
    """
    try:
        return load()
    except (SAEError, MemoryError):
        raise
    except Exception as error:  # of safetensors, tokenizers, torch and what else they rest on
        raise SourceError(f"{what} did not load: {first_line(error)}. {remedy}") from error


def lm_files(folder: Path) -> list[Path]:
    """The files of a folder that decide what its LM and tokenizer are."""
    return [path for path in visible(folder.iterdir(), folder) if path.suffix in _LM_FILES]


def _require_contents(folder: Path) -> None:
    for file in lm_files(folder):
        if not file.is_dir():
            require_content(file, SourceError)
            _refuse_mark(file)


def _refuse_mark(file: Path) -> None:
    with file.open("rb") as stream:
        marked = stream.read(3) == b"\xef\xbb\xbf"
    if marked and file.suffix == ".json":  # transformers reads these itself
        raise SourceError(
            f"{file} starts with a byte order mark, which some Windows editors write and JSON does "
            "not allow. Save it as UTF-8 without one."
        )
