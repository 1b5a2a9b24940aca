"""GGUF files become folders of safetensors, once."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sae.errors import SourceError
from sae.language.quiet import first_line, quiet
from sae.language.weights import refuse_other_keys
from sae.progress import progress

_READER = "transformers.modeling_gguf_pytorch_utils"


def gguf_to_folder(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model in bfloat16 and its tokenizer as `save_pretrained` does.

    Raises:
        SourceError: If it is no GGUF file, a weight of the model is not in it, or a tensor of the
            file has no place in the model.
    """
    import transformers

    # In percent of the time that each step took with SmolLM2-135M.
    with quiet(), _quick_reader(), progress("convert the LM, once", 100, unit="%") as advance:
        try:
            config = transformers.AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except Exception as error:  # bytes that are no GGUF file can raise anything
            raise SourceError(f"{gguf} cannot be read as GGUF: {first_line(error)}.") from error
        advance(49)
        model = model_of(gguf, config)
        advance(37)
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        advance(8)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        advance(6)


def model_of(gguf: Path, config: Any) -> Any:
    """The model of a GGUF file in bfloat16, each of whose weights the file holds, and no more.

    Raises:
        SourceError: See `gguf_to_folder`.
    """
    import transformers

    # Weights stay packed where a kernel for them is installed, unless this is said; the first
    # versions of transformers 5 know neither the class nor packed weights.
    packed = getattr(transformers, "GgufConfig", None)
    packing = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, config=config, dtype=torch.bfloat16, gguf_file=gguf.name,
        output_loading_info=True, ignore_mismatched_sizes=True, **packing,
    )  # fmt: skip
    model, found = loaded
    refuse_other_keys(model, found, gguf)
    _refuse_left_out(gguf, model)
    return model


def _refuse_left_out(gguf: Path, model: Any) -> None:
    """Refuse tensors that transformers has no name for, which it passes over."""
    from gguf import GGUFReader

    reader: Any = importlib.import_module(_READER)
    processor = reader.TENSOR_PROCESSORS.get(model.config.model_type, reader.TensorProcessor)
    known = reader.get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    left_out = [tensor.name for tensor in GGUFReader(str(gguf)).tensors if tensor.name not in known]
    if left_out:
        raise SourceError(
            f"{gguf} holds {', '.join(left_out[:3])} ({len(left_out)} in all), for which "
            f"transformers' {model.config.model_type} has no place: without them it is another LM. "
            "Use a file of the LM in safetensors (lm=folder)."
        )


@contextmanager
def _quick_reader() -> Iterator[None]:
    """Let transformers read the file once, build its table of names once, and show no tqdm bar.

    It reads all of the file for each of configuration, weights and tokenizer, and builds the table
    for every module of the model: half of the time. Its bar would cut through ours.
    """
    import gguf

    library: Any = importlib.import_module(_READER)
    ours = [
        (gguf, "GGUFReader", cache(gguf.GGUFReader)),
        (gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        (library, "tqdm", lambda items, **_: items),
    ]
    theirs = [getattr(module, name, None) for module, name, _ in ours]
    for module, name, own in ours:
        setattr(module, name, own)
    try:
        yield
    finally:
        for (module, name, _), value in zip(ours, theirs, strict=True):
            setattr(module, name, value)
