"""Every LM family keeps one contract: what is read at each site, and what a splice does there.

The tiny LMs have random norm gains and biases, so that a norm left out is seen.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from _families import EVERY
from torch import nn

from sae.language.names import NAMES, nnsight_name, read_name
from sae.language.sites import FAMILIES, family_of
from sae.language.tiny import TINY, byte_tokenizer, random_config
from sae.types import SITES, Point

LAYERS = 3
EXPERTS = [word for word, family in FAMILIES.items() if "mlp" not in family.sites]
# Settings that move the sums of a family's blocks elsewhere
VARIANTS = [
    ("gpt_neox", {"use_parallel_residual": False}),
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    ("falcon", {"parallel_attn": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "num_kv_heads": 2}),
    ("falcon", {"alibi": True}),
    ("gpt2", {"n_inner": 48}),
    ("qwen3_moe", {"mlp_only_layers": [1]}),
]
# What each special setting is where it does nothing
NEUTRAL = {
    "sliding_window": 500, "window_size": 500, "attn_logit_softcapping": 1e6,
    "final_logit_softcapping": None, "residual_multiplier": 1.0, "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0, "logits_scaling": 1.0, "query_pre_attn_scalar": 1,
    "clip_qkv": None, "no_rope_layer_interval": 1, "rotary_dim": 8,
}  # fmt: skip
STRUCTURE = {"head_dim", "num_key_value_heads", "num_experts", "num_experts_per_tok",
             "moe_intermediate_size", "sliding_window_pattern", "attention_types", "qk_layernorm",
             "use_qk_norm", "use_sliding_window", "max_window_layers"}  # fmt: skip


def made(family, **settings):
    """A tiny LM with random weights everywhere, norms and biases too."""
    from transformers import AutoModelForCausalLM

    from sae.language import LanguageModel
    from sae.language.quiet import quiet

    config = random_config(family, 32, LAYERS, 512, **settings)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return LanguageModel(model, byte_tokenizer(), name=family)


@pytest.fixture(scope="module")
def of():
    """`of("gemma2")` is the tiny LM, made once."""
    known = {}

    def get(family):
        if family not in known:
            known[family] = made(family)
        return known[family]

    return get


@pytest.fixture(params=EVERY)
def lm(request, of):
    return of(request.param)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 257, (2, 17), generator=torch.Generator().manual_seed(0))


def points_of(lm):
    return [Point(site, layer) for site in lm.family.sites for layer in range(LAYERS)]


def assert_sums(lm, tokens):
    found = lm.capture(tokens, points_of(lm))
    for layer in range(1, LAYERS):
        below, here, attn, mlp = (
            found[Point(site, at)]
            for site, at in (("resid", layer - 1), ("resid", layer), ("attn_out", layer),
                             ("mlp_out", layer))
        )  # fmt: skip
        off = (here - below - attn - mlp).norm(dim=-1) / here.norm(dim=-1)
        assert off.max() < 1e-4
        assert min((attn.norm() / here.norm()), (mlp.norm() / here.norm())) > 1e-3


def assert_splices(lm, tokens):
    """Identity splices leave the logits of plain transformers; others do not."""
    with torch.no_grad():
        plain = lm.model(tokens, use_cache=False).logits
    tolerance = {"atol": 1e-5 * plain.std().item(), "rtol": 1e-5}
    torch.testing.assert_close(lm.logits(tokens), plain, **tolerance)
    found = lm.capture(tokens, points_of(lm))
    back = {point: lambda _, p=point: found[p].clone() for point in points_of(lm)}
    for point in (point for point in points_of(lm) if point.layer == 1):
        torch.testing.assert_close(lm.logits(tokens, {point: back[point]}), plain, **tolerance)
        zeroed = lm.logits(tokens, {point: torch.zeros_like})
        assert (zeroed - plain).abs().max() > 1e-2 * plain.std(), point
    torch.testing.assert_close(lm.logits(tokens, back), plain, **tolerance)


def test_every_family_has_its_tiny_sizes():
    assert TINY.keys() == FAMILIES.keys()
    assert all(set(settings) <= STRUCTURE | NEUTRAL.keys() for settings in TINY.values())


def test_the_residual_stream_is_the_sum_of_what_was_added(lm, tokens):
    assert_sums(lm, tokens)


def test_identity_splices_leave_the_logits_of_transformers(lm, tokens):
    assert_splices(lm, tokens)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "settings"), VARIANTS, ids=str)
def test_the_contract_holds_with_other_settings(family, settings, tokens):
    lm = made(family, **settings)
    assert_sums(lm, tokens)
    assert_splices(lm, tokens)


@pytest.mark.parametrize("family", EVERY)
def test_what_is_special_is_at_work(family, of, tokens):
    """Windows, soft-caps and factors change these logits: the contract above is about them."""
    special = [name for name in TINY[family] if name in NEUTRAL]
    for name in special:
        other = made(family, **{name: NEUTRAL[name]})
        other.model.load_state_dict(of(family).model.state_dict())
        difference = other.logits(tokens) - of(family).logits(tokens)
        assert difference.abs().max() > 1e-3 * of(family).logits(tokens).std(), name


def test_eager_attention_gives_the_same_logits(lm, tokens):
    eager = copy.deepcopy(lm.model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        expected = eager(tokens, use_cache=False).logits
    torch.testing.assert_close(lm.logits(tokens), expected, atol=1e-4, rtol=1e-4)


def test_mlp_and_attn_z_are_spliced_through_the_norm(lm, tokens):
    """A splice before a projection is the splice of what comes of it after the norm."""
    for read, written in (("mlp", "mlp_out"), ("attn_z", "attn_out")):
        if read not in lm.family.sites:
            continue
        before, after = Point(read, 1), Point(written, 1)
        new = torch.randn(2, 17, lm.width(before), generator=torch.Generator().manual_seed(1))
        block = lm.model.get_submodule(f"{lm.family.blocks}.1")
        out = block.get_submodule(lm.family.modules[read])(new)
        if lm.family.modules[written] != lm.family.modules[read]:
            out = block.get_submodule(lm.family.modules[written])(out)
        factor = getattr(lm.model.config, lm.family.factor) if lm.family.factor else 1
        added = []
        both = {before: lambda _, v=new: v, after: lambda v, a=added: a.append(v) or v}
        spliced = lm.logits(tokens, both)
        torch.testing.assert_close(added[0], out * factor, atol=1e-5, rtol=1e-4)
        directly = lm.logits(tokens, {after: lambda _, v=out * factor: v})
        torch.testing.assert_close(spliced, directly, atol=1e-5, rtol=1e-4)


def neurons(mlp, x):
    """act(W x), or act(gate) * up, from the MLP's own weights."""
    act = next(getattr(mlp, name) for name in ("act_fn", "act", "activation_fn", "gelu_impl")
               if hasattr(mlp, name))  # fmt: skip
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj(x).chunk(2, dim=-1)
        return act(gate) * up
    if hasattr(mlp, "gate_proj"):
        return act(mlp.gate_proj(x)) * mlp.up_proj(x)
    names = ("up_proj", "c_fc", "fc_in", "fc1", "dense_h_to_4h")
    return act(next(getattr(mlp, name) for name in names if hasattr(mlp, name))(x))


@pytest.mark.parametrize("family", [word for word in FAMILIES if word not in EXPERTS])
def test_mlp_is_the_activations_of_neurons(family, of, tokens):
    lm = of(family)
    points = [Point("mlp_in", 1), Point("mlp", 1)]
    read, hidden = lm.capture(tokens, points).values()
    block = lm.model.get_submodule(f"{lm.family.blocks}.1")
    around = block.get_submodule(lm.family.modules["mlp"].rpartition(".")[0])
    torch.testing.assert_close(hidden, neurons(around, read), atol=1e-5, rtol=1e-4)


def test_a_capture_ends_at_the_highest_point(lm, tokens):
    ran = []
    blocks = list(lm.model.get_submodule(lm.family.blocks).children())
    above = [blocks[2], lm.model.get_submodule(lm.family.final_norm), *_projections(blocks[1], lm)]
    handles = [m.register_forward_pre_hook(lambda m, _: ran.append(m)) for m in above]
    try:
        lm.capture(tokens, [Point(site, 0) for site in lm.family.sites])
        assert not ran
        lm.capture(tokens, [Point("attn_z", 1)])
        assert all(module in _projections(blocks[1], lm)[:1] for module in ran)
        lm.capture(tokens, [Point("resid", 1)])
        assert blocks[2] not in ran
    finally:
        for handle in handles:
            handle.remove()


def _projections(block, lm):
    return [block.get_submodule(lm.family.modules[site]) for site in ("attn_out", "mlp_out")]


def test_sizes_are_those_of_the_lm(lm):
    from sae.language.sizes import sizes_of

    sizes = sizes_of(lm.model.config)
    assert sizes.parameters == sum(p.numel() for p in lm.model.parameters())
    assert (sizes.num_layers, sizes.d_model, sizes.vocab_size) == (3, 32, 257)
    for point in points_of(lm):
        assert sizes.width(point) == lm.width(point)


@pytest.mark.parametrize("family", EXPERTS)
def test_neurons_of_experts_are_no_site(family, of, tokens):
    from sae.errors import SiteError
    from sae.language.sizes import sizes_of

    lm = of(family)
    for check in (lm.check, sizes_of(lm.model.config).check):
        with pytest.raises(SiteError, match=r"site=mlp .*mixtures of experts.*resid, mlp_in, mlp_"):
            check(Point("mlp", 0))
    with pytest.raises(SiteError, match="experts"):
        lm.capture(tokens, [Point("mlp", 0)])


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [("opt", "do_layer_norm_before", False),
     ("bloom", "apply_residual_connection_post_layernorm", True)],
)  # fmt: skip
def test_settings_that_break_the_sum_are_refused(family, setting, value):
    from sae.errors import SiteError

    with pytest.raises(SiteError, match=rf"'{family}'.*{setting}={value}"):
        made(family, **{setting: value})


def test_an_unknown_family_lists_those_that_work():
    from types import SimpleNamespace

    from sae.errors import SiteError

    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type="mamba")
    with pytest.raises(SiteError, match="'mamba'") as caught:
        family_of(model)
    assert all(word in str(caught.value) for word in FAMILIES)


# --- names of other libraries ----------------------------------------------------------------


def test_the_page_has_all_families_and_names():
    page = (Path(__file__).parents[2] / "docs/reference/families.md").read_text()
    families = page[page.index("| | `model_type` |") : page.index("In all of them")]
    assert set(re.findall(r"`(\w+)`", families)) - {"model_type"} == set(FAMILIES)
    for site, names in NAMES.items():
        point = Point(site, 4)
        paths = dict.fromkeys(nnsight_name(FAMILIES[word], point) for word in ("llama", "gemma2"))
        nnterp = f"`{names.nnterp}[4]`" if names.nnterp else "none"
        row = f"| `{site}` | `{names.transformer_lens}` | {'; '.join(f'`{p}`' for p in paths)} "
        assert f"{row}| {nnterp} | `{names.interp_engine}` |" in page


def test_every_site_has_its_names():
    assert tuple(NAMES) == SITES
    hooks = {site: f"blocks.7.{names.transformer_lens}" for site, names in NAMES.items()}
    assert {site: read_name(hook)[0] for site, hook in hooks.items()} == {
        site: Point(site, 7) for site in SITES
    }


def test_nnsight_reads_there_what_is_captured_here(lm, tokens):
    """The name, followed by hand: the module's input or output is the activation."""
    for site in lm.family.sites:
        point = Point(site, 1)
        name = nnsight_name(lm.family, point)
        path, _, end = name.replace("[", ".").replace("]", "").rpartition(".")
        seen = []
        module = lm.model.get_submodule(path)
        handle = module.register_forward_hook(
            lambda m, i, o, s=seen: s.append((i[0], (o[0] if isinstance(o, tuple) else o).clone()))
        )
        value = lm.capture(tokens, [point, Point("resid", LAYERS - 1)])[point]
        handle.remove()
        if lm.family.factor is not None and point.site in ("mlp_out", "attn_out"):
            continue  # nnsight sees it before the factor
        got = seen[0][end == "output"]
        torch.testing.assert_close(got.reshape(value.shape), value)


def test_module_names_of_a_known_family_are_its_points(lm):
    for point in points_of(lm):
        name = nnsight_name(lm.family, point).replace("[", ".").replace("]", "")
        read, reason = read_name(name, lm.name)
        if lm.family.factor is not None and point.site in ("mlp_out", "attn_out"):
            assert read is None
            assert "factor" in reason
        else:
            assert read == point


@pytest.mark.parametrize(
    ("name", "model_type", "point"),
    [
        ("model.layers.4", None, "resid.4"),
        ("layers.4", None, "resid.4"),
        ("model.layers.4.output", None, "resid.4"),
        ("model.layers.4.input", "gemma2", "resid.3"),
        ("transformer.h.4", None, "resid.4"),
        ("blocks.4.hook_resid_pre", None, "resid.3"),
        ("model.layers.4.self_attn.o_proj.input", None, "attn_z.4"),
        ("model.layers.4.mlp.down_proj.input", "qwen2", "mlp.4"),
        ("model.layers.4.mlp", "qwen3", "mlp_out.4"),
        ("model.layers.4.self_attn", "llama", "attn_out.4"),
        ("model.layers.4.post_feedforward_layernorm.output", None, "mlp_out.4"),
        ("transformer.h.4.mlp", "gpt2", "mlp_out.4"),
        ("model.layers.4.mlp", "gemma2", "norm"),
        ("model.layers.4.self_attn", "olmo2", "norm"),
        ("model.layers.4.mlp", "granite", "factor"),
        ("transformer.h.4.mlp", "bloom", "stream itself"),
        ("model.layers.4.mlp", None, "depends on the family"),
        ("model.layers.4.mlp.act", None, "no family"),
        ("gpt_neox.layers.4", "llama", "no family"),
        ("blocks.0.hook_resid_pre", None, "embedding"),
        ("model.layers.0.input", "llama", "embedding"),
        ("blocks.4.ln2.hook_normalized", None, "those that are sites"),
        ("embed", None, "neither a hook"),
        ("blocks.4.hook_resid_mid", None, "those that are sites"),
        ("blocks.4.mlp.hook_pre", None, "those that are sites"),
    ],
)
def test_names_that_other_libraries_write(name, model_type, point):
    read, reason = read_name(name, model_type)
    if read is None:
        assert point in reason
    else:
        assert (str(read), reason) == (point, "")
