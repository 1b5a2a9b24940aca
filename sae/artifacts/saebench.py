"""Adapter to SAEBench (`sae-bench`): an SAE with the tensors, methods and `cfg` it expects."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from sae.artifacts.folding import require
from sae.artifacts.places import hook_of, place_of
from sae.dictionaries.sae import ACTIVATIONS, SAE
from sae.errors import ArtifactError


@dataclass
class SAEBenchConfig:
    """The fields that SAEBench's evaluations read, by its names (its `CustomSAEConfig`)."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int = 128
    hook_head_index: int | None = None
    architecture: str = ""
    apply_b_dec_to_input: bool = False
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    prepend_bos: bool = False
    normalize_activations: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields, as SAEBench writes them beside its results."""
        return asdict(self)


class SAEBenchSAE(nn.Module):
    """Satisfies SAEBench's interface of a custom SAE; made by `to_saebench`.

    Attributes:
        W_enc: [d_in d_sae].
        b_enc: [d_sae].
        W_dec: [d_sae d_in], unit rows.
        b_dec: [d_in].
        cfg: Description that SAEBench reads.
    """

    def __init__(self, sae: SAE, cfg: SAEBenchConfig):
        super().__init__()
        self.sae, self.cfg = sae, cfg
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec
        self.encode, self.decode, self.forward = sae.encode, sae.decode, sae.forward

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.sae.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.sae.dtype

    def to(self, *args: Any, **kwargs: Any) -> "SAEBenchSAE":
        """Move or cast, and say so in `cfg`."""
        super().to(*args, **kwargs)
        self.cfg.dtype = str(self.dtype).removeprefix("torch.")
        self.cfg.device = str(self.device)
        return self

    @torch.no_grad()
    def check_decoder_norms(self) -> bool:
        """True if the decoder rows have length 1; `SAE` makes sure of it."""
        tolerance = 1e-2 if self.dtype.itemsize == 2 else 1e-4
        return bool((self.W_dec.float().norm(dim=1) - 1).abs().max() <= tolerance)


def to_saebench(
    sae: SAE, model_name: str | None = None, hook_name: str | None = None
) -> SAEBenchSAE:
    """Wrap an SAE for SAEBench's `run_eval(config, [(name, wrapped)], …)`; the weights are shared.

    Args:
        sae: The SAE to measure.
        model_name: TransformerLens' name of the LM, default what the SAE's metadata say.
        hook_name: TransformerLens' name of the place, default what the metadata say.

    Raises:
        ArtifactError: If one of them is neither given nor known, or the SAE is a transcoder.
    """
    require(sae, tuple(ACTIVATIONS), "SAEBench")
    place = place_of(sae)
    model_name = model_name or place.lm
    hook_name = hook_name or (hook_of(place.point) if place.point else None)
    layer = (hook_name or "").split(".")[1:2]
    if model_name is None or hook_name is None or not (layer and layer[0].isdigit()):
        raise ArtifactError(
            f"SAEBench needs model_name={model_name!r} and hook_name={hook_name!r}: give both, for "
            'example model_name="pythia-70m-deduped", hook_name="blocks.4.hook_resid_post".'
        )
    cfg = SAEBenchConfig(
        model_name, sae.d_in, sae.d_sae, int(layer[0]), hook_name,
        architecture=sae.config.architecture, activation_fn_str=sae.config.activation,
        context_size=place.ctx or 128, dataset_path=place.corpus or "",
    )  # fmt: skip
    return SAEBenchSAE(sae, cfg).to(sae.device)
