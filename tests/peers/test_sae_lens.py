"""Our `core` and `downstream` against sae-lens' own evals: same weights, tokens and masks.

sae-lens runs on its own stack (TransformerLens' HookedTransformer), we on transformers. Two masks
are compared: every position counts; and position 0 holds a special token that neither library
counts or replaces.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor

from sae.activations.store import ActivationStore

log = logging.getLogger(__name__)
pytestmark = [
    pytest.mark.peers,
    # Neither library's own imports are free of warnings.
    pytest.mark.filterwarnings("ignore:::transformer_lens"),
    pytest.mark.filterwarnings("ignore:::sae_lens"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CONTEXTS, CTX, VOCAB, BOS = 24, 32, 61, 60
D_MODEL, HEADS, LAYERS, LAYER, D_SAE = 32, 4, 3, 1, 96
RTOL = 1e-4


@pytest.fixture(scope="module")
def hf_model():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=64, max_position_embeddings=CTX, hidden_act="gelu", bos_token_id=BOS,
        initializer_range=0.3, use_parallel_residual=True,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


@pytest.fixture(scope="module")
def hooked_model(hf_model):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_neox_weights

    config = HookedTransformerConfig(
        n_layers=LAYERS, d_model=D_MODEL, n_ctx=CTX, d_head=D_MODEL // HEADS, n_heads=HEADS,
        d_mlp=64, d_vocab=VOCAB, act_fn="gelu", eps=hf_model.config.layer_norm_eps,
        normalization_type="LN", positional_embedding_type="rotary", rotary_adjacent_pairs=False,
        rotary_dim=int(0.25 * D_MODEL // HEADS), parallel_attn_mlp=True, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config)
    state = convert_neox_weights(hf_model, config)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    return model


@pytest.fixture(scope="module")
def tokens(hf_model) -> Tensor:
    """Contexts that the model itself wrote, from BOS on, so that ablating it costs loss."""
    torch.manual_seed(1)
    written = torch.full((CONTEXTS, 1), BOS)
    with torch.no_grad():
        while written.shape[1] < CTX:
            logits = hf_model(written).logits[:, -1]
            logits[:, BOS] = -torch.inf
            written = torch.cat([written, torch.multinomial(logits.softmax(-1), 1)], dim=1)
    return written


class NoTokenizer:
    """The tests work on token ids."""

    eos_token_id = BOS

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: object, **options: object) -> dict[str, object]:
        raise AssertionError


@pytest.fixture(scope="module")
def lm(hf_model):
    from sae.language.lm import LanguageModel

    return LanguageModel(hf_model, NoTokenizer())


@pytest.fixture(scope="module")
def our_sae(lm, tokens):
    """Decoder atoms are training inputs around the mean: sparse, imperfect, better than nothing."""
    from sae.dictionaries.sae import SAE, SAEConfig
    from sae.types import Point

    point = Point("resid", LAYER)
    x = lm.capture(tokens, [point])[point][:, 1:].reshape(-1, D_MODEL)
    mean = x.mean(0)
    chosen = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(2))[:D_SAE]] - mean
    atoms = chosen / chosen.norm(dim=1, keepdim=True)
    W_enc = 0.35 * atoms.T.contiguous()
    b_enc = -(mean @ W_enc) - 0.1 * chosen.norm(dim=1)
    b_enc[:6] = -1e3  # silent
    b_enc[6:8] = 5.0  # dense
    return SAE(W_enc, b_enc, atoms, mean, SAEConfig("l1", "relu", D_MODEL, D_SAE))


@dataclass
class Spec:
    keep_first: bool


class FakeStore(ActivationStore):
    """The tokens of a split, each context one document."""

    def __init__(self, tokens: Tensor, keep_first: bool, folder: Path):
        self.spec, self.folder = Spec(keep_first), folder
        self.tokens = tokens.numpy().astype(np.int32)
        self.document = np.repeat(np.arange(CONTEXTS, dtype=np.int32)[:, None], CTX, axis=1)


class FakeRows:
    """Activations of the split in two chunks."""

    num_chunks = 2

    def __init__(self, x: Tensor, document: np.ndarray):
        from sae.activations.stats import RunningStats

        self._x, self._document = x, document
        self.num_rows, self.d_in = x.shape
        running = RunningStats(self.d_in)
        running.update(x)
        self.stats = running.result()

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        return (0, 300) if i == 0 else (300, self.num_rows)

    def read(self, i: int) -> Tensor:
        return self._x[slice(*self.chunk_bounds(i))]

    def documents(self, i: int) -> np.ndarray:
        return self._document[slice(*self.chunk_bounds(i))]


@pytest.fixture(params=[True, False], ids=["every_position", "without_position_0"])
def keep_first(request) -> bool:
    return request.param


@pytest.fixture
def context(lm, our_sae, tokens, keep_first, tmp_path):
    from _evals import place

    from sae.types import Point

    point, start = Point("resid", LAYER), 0 if keep_first else 1
    store = FakeStore(tokens, keep_first, tmp_path)
    x = lm.capture(tokens, [point])[point][:, start:].reshape(-1, D_MODEL)
    rows = FakeRows(x, store.document[:, start:].reshape(-1))
    return place(our_sae, point, rows, store, lambda: lm)


def duck(sae, hook_name: str = f"blocks.{LAYER}.hook_resid_post") -> SimpleNamespace:
    """What sae-lens' evals read of an SAE."""
    metadata = SimpleNamespace(hook_name=hook_name, hook_head_index=None)
    return SimpleNamespace(
        encode=sae.encode, decode=sae.decode, device=torch.device("cpu"), dtype=torch.float32,
        cfg=SimpleNamespace(d_sae=D_SAE, metadata=metadata),
    )  # fmt: skip


class FakeTokenStore:
    """What sae-lens' evals read of an ActivationsStore: batches of tokens, in order."""

    def __init__(self, tokens: Tensor):
        self._tokens, self._next = tokens, 0

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        self._next += batch_size
        return self._tokens[self._next - batch_size : self._next]


def test_both_stacks_compute_the_same_model(hf_model, hooked_model, tokens):
    with torch.no_grad():
        torch.testing.assert_close(
            hooked_model(tokens), hf_model(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_core(context, hooked_model, tokens, keep_first):
    from sae_lens.evals import get_sparsity_and_variance_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    from sae.evals import CoreEval
    from sae.metrics import OtherDefinitions

    theirs, by_feature = get_sparsity_and_variance_metrics(
        sae=duck(context.sae), model=hooked_model, activation_store=FakeTokenStore(tokens),
        activation_scaler=ActivationScaler(), n_batches=1, compute_l2_norms=True,
        compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True, eval_batch_size_prompts=CONTEXTS,
        model_kwargs={}, ignore_tokens=None if keep_first else [BOS],
    )  # fmt: skip
    result = CoreEval(batch_rows=128, legacy=("all",)).run(context)
    ours = {name: estimate.value for name, estimate in result.metrics.items()}
    assert result.tokens["vectors"] == CONTEXTS * (CTX if keep_first else CTX - 1)
    assert 2 < ours["l0"] < 40  # a sparse code, an imperfect reconstruction
    assert 0.02 < ours["fvu"] < 0.8
    pairs = {
        "l0": (ours["l0"], theirs["l0"]),
        "mse": (ours["mse"] * D_MODEL, theirs["mse"]),
        "explained_variance": (1 - ours["fvu"], theirs["explained_variance"]),
        "cosine": (ours["cosine"], theirs["cossim"]),
        "l2_ratio": (ours["l2_ratio"], theirs["l2_ratio"]),
        "relative_bias": (ours["relative_bias"], theirs["relative_reconstruction_bias"]),
    }
    pairs["l1"] = (ours["l1"], theirs["l1"])
    pairs["norm"] = (ours["norm"], theirs["l2_norm_in"])
    pairs["norm_hat"] = (ours["norm_hat"], theirs["l2_norm_out"])
    pairs["mse_sae_lens"] = (ours["mse_sae_lens"], theirs["mse"])
    # Their legacy value takes the mean of a batch: give ours the whole split as one.
    x = torch.cat([context.rows("test").read(i) for i in range(context.rows("test").num_chunks)])
    f = context.sae.encode(x)
    other = OtherDefinitions(D_SAE)
    other.update(x, context.sae.decode(f), f)
    legacy = other.compute()["ev_saebench_legacy"]
    pairs["explained_variance_legacy"] = (legacy, theirs["explained_variance_legacy"])
    r2 = {
        how: r2_score(x.double(), context.sae.decode(f).double(), multioutput=how)
        for how in ("uniform_average", "variance_weighted")
    }
    pairs["r2_uniform_average"] = (1 - ours["fvu_per_dim"], r2["uniform_average"])
    pairs["r2_variance_weighted"] = (1 - ours["fvu"], r2["variance_weighted"])
    consistent = np.array(by_feature["consistent_activation_heuristic"])
    pairs["consistent_activation"] = (ours["consistent_activation"], np.nanmean(consistent))
    density = np.array(by_feature["feature_density"])
    pairs["freq_over_1_percent"] = (ours["freq_over_1_percent"], (density > 0.01).mean())
    share = density[density > 0.1].sum() / density.sum()
    pairs["normalized_freq_over_10_percent"] = (ours["normalized_freq_over_10_percent"], share)
    pairs["silent"] = (ours["silent"], (density == 0).mean())
    pairs["dense"] = (ours["dense"], (density > 0.1).mean())
    agree(pairs)


def test_downstream(context, hooked_model, tokens, keep_first):
    from sae_lens.evals import get_downstream_reconstruction_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    from sae.evals import DownstreamEval

    def theirs(sae: SimpleNamespace) -> dict[str, float]:
        return get_downstream_reconstruction_metrics(
            sae=sae, model=hooked_model, activation_store=FakeTokenStore(tokens),  # pyright: ignore
            activation_scaler=ActivationScaler(), compute_kl=False, compute_ce_loss=True,
            n_batches=3, eval_batch_size_prompts=CONTEXTS // 3,
            ignore_tokens=None if keep_first else [BOS],
        )  # fmt: skip

    result = DownstreamEval(num_tokens=10**6, batch_contexts=5).run(context)
    ours = {name: estimate.value for name, estimate in result.metrics.items()}
    assert result.tokens["predictions"] == CONTEXTS * (CTX - 1 if keep_first else CTX - 2)
    spliced = theirs(duck(context.sae))
    pairs = {
        "ce_clean": (ours["ce_clean"], spliced["ce_loss_without_sae"]),
        "ce_sae": (ours["ce_sae"], spliced["ce_loss_with_sae"]),
    }
    # Their zero ablation also hits positions that their splice leaves alone. An SAE that returns
    # a constant is the ablation with the splice's mask, which is ours; without a mask they agree.
    mean = torch.as_tensor(context.rows("test").stats.mean).float()
    ce_sae, ce_clean = spliced["ce_loss_with_sae"], spliced["ce_loss_without_sae"]
    for name, constant in {"zero": torch.zeros(D_MODEL), "mean": mean}.items():
        ablation = duck(context.sae)
        ablation.decode = lambda f, constant=constant: constant.expand(*f.shape[:-1], D_MODEL)
        ce = theirs(ablation)["ce_loss_with_sae"]
        pairs[f"ce_{name}"] = (ours[f"ce_{name}"], ce)
        recovered = (ce - ce_sae) / (ce - ce_clean)
        pairs[f"ce_recovered_{name}"] = (ours[f"ce_recovered_{name}"], recovered)
        assert 0.2 < recovered < 0.99
    if keep_first:
        pairs["ce_zero_theirs"] = (ours["ce_zero"], spliced["ce_loss_with_ablation"])
        pairs["ce_loss_score"] = (ours["ce_recovered_zero"], spliced["ce_loss_score"])
    agree(pairs)


def test_kl(context, hooked_model, tokens, keep_first):
    from sae_lens.evals import get_recons_loss
    from sae_lens.training.activation_scaler import ActivationScaler

    from sae.evals import DownstreamEval

    theirs = get_recons_loss(
        duck(context.sae), hooked_model, ActivationScaler(), tokens,  # pyright: ignore
        compute_kl=True, compute_ce_loss=False, ignore_tokens=None if keep_first else [BOS],
    )  # fmt: skip
    # theirs has the last position too
    start = 0 if keep_first else 1
    counted = {name: kl[:, start:-1].mean().item() for name, kl in theirs.items()}
    ours = DownstreamEval(num_tokens=10**6).run(context).metrics
    agree({"kl": (ours["kl"].value, counted["kl_div_with_sae"])})
    if keep_first:  # otherwise their zero ablation hits position 0, which ours spares
        agree({"kl_zero": (ours["kl_zero"].value, counted["kl_div_with_ablation"])})


def agree(pairs: dict[str, tuple[float, float]]) -> None:
    for name, (ours, theirs) in pairs.items():
        log.info("%s: ours %.8g, theirs %.8g", name, ours, theirs)
        assert ours == pytest.approx(theirs, rel=RTOL), name
