"""Circuits: a planted one is found, edges are finite differences, files can be read again."""

import copy
import json
from xml.etree import ElementTree

import pytest
import torch
from _circuits import COMPANY, CTX, MIDDLE, TARGET, UPSTREAM, place, planted, sae_at

from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.evals.circuit import CircuitEval
from sae.features import circuit as module
from sae.features.circuit import circuit, strong_contexts
from sae.features.expansion import Search
from sae.features.graph import contracted
from sae.features.sets import read_features
from sae.interventions.splice import note
from sae.metrics.bootstrap import Bootstrap
from sae.reports.circuit import write_circuit
from sae.tasks.task import Prompt, Task, ids_of, one_token

HOW = {"contexts": 8, "exact": 6, "random": 4, "children": 2, "resamples": 200}
ROOT = f"resid.2/{TARGET}"


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """In place of the cache of every test: activations and records are made once for all here."""
    monkeypatch.setattr("sae.features.make.return_freed_memory", lambda: None)  # takes its time


@pytest.fixture(scope="module")
def levels(tiny_source, random_corpus):
    return planted(tiny_source, random_corpus())


@pytest.fixture(scope="module")
def result(levels):
    return CircuitEval(feature=TARGET, **HOW).run(levels[::-1])  # in any order


def links(result):
    return {(link["source"], link["target"]): link for link in result.details["links"]}


@pytest.mark.slow
def test_the_planted_circuit_is_found(result):
    found = links(result)
    straight = found[f"resid.1/{MIDDLE}", ROOT]
    assert straight["share"] == pytest.approx(1, abs=1e-4)
    assert straight["identity"]
    assert straight["cosine"] == pytest.approx(1)
    driven = found[f"resid.0/{UPSTREAM}", f"resid.1/{MIDDLE}"]
    assert driven["share"] == pytest.approx(1, abs=0.05)
    assert driven["low"] <= driven["weight"] <= driven["high"]
    assert not driven["identity"]
    assert abs(driven["random_step"]) < 0.5 * driven["weight"]
    assert (f"resid.0/{COMPANY}", f"resid.1/{MIDDLE}") not in found  # it only fires beside it
    assert [node["node_id"] for node in result.details["nodes"]][0] == ROOT
    lowest = [node for node in result.details["nodes"] if node["layer"] == 0]
    assert {node["note"] for node in lowest} == {"the lowest layer"}
    assert result.provenance["together"][1]["point"] == "resid.1"


def test_an_edge_is_the_mean_of_finite_differences(result, levels):
    """Against the LM with another pass for every context, edited by a hook."""
    below, above, _ = levels
    found = module.records(above, split="test")
    document = above.store("test").document
    lm, seen, differences, clean = above.lm, {}, [], []
    for tokens in strong_contexts(found, str(MIDDLE), document, 8, 0):
        counts = below.counted.mask([lm.capture(tokens[None], [below.point])[below.point]], None)
        counts[:, 0] = False
        values = []
        for part in (0.0, 1.0):

            def off(x, part=part, counts=counts):
                f = below.sae.encode(x)[..., UPSTREAM, None] * counts[..., None]
                return x - part * f * below.sae.W_dec[UPSTREAM]

            edited = {below.point: off, above.point: note(above.point, seen)}
            lm.logits(tokens[None], edited)
            values.append(float(above.sae.encode(seen[above.point][0, -1])[MIDDLE]))
        differences.append(values[0] - values[1])
        clean.append(values[0])
    edge = links(result)[f"resid.0/{UPSTREAM}", f"resid.1/{MIDDLE}"]
    assert len(differences) == 8
    assert edge["weight"] == pytest.approx(sum(differences) / 8, abs=1e-5)
    assert edge["share"] == pytest.approx(sum(differences) / sum(clean), abs=1e-5)
    assert min(differences) <= edge["low"] < edge["weight"] < edge["high"] <= max(differences)


def test_every_ablation_is_in_the_table(result):
    rows = result.tables["edges"].rows()
    of_root = [row for row in rows if row["target_layer"] == 2]
    assert sum(row["ranked"] for row in of_root) == 6
    assert sum(not row["ranked"] for row in of_root) == 4
    sizes = [abs(row["effect"]) for row in of_root]
    assert sizes == sorted(sizes, reverse=True)
    assert max(abs(row["share"]) for row in rows if not row["ranked"]) == pytest.approx(
        result.metrics["largest_missed"].value
    )
    assert all(row["step"] is not None for row in rows if row["listed"])
    steps = [abs(row["step"]) for row in of_root if row["listed"]]
    assert len(steps) <= 2


def test_contexts_are_strong_cut_and_of_different_documents(levels):
    one = levels[1]
    found, document = module.records(one, split="test"), one.store("test").document
    contexts = strong_contexts(found, str(MIDDLE), document, 20, 0)
    half = found[MIDDLE].max / 2
    for tokens in contexts:
        x = one.lm.capture(tokens[None], [one.point])[one.point][0, -1]
        assert float(one.sae.encode(x)[MIDDLE]) >= half * 0.99
    again = strong_contexts(found, str(MIDDLE), document, 20, 0)
    others = strong_contexts(found, str(MIDDLE), document, 20, 1)
    assert all(map(torch.equal, contexts, again))
    assert not all(map(torch.equal, contexts, others))
    assert len({tuple(tokens.tolist()) for tokens in contexts}) == 20


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_killed(levels, monkeypatch):
    how = HOW | {"contexts": 5, "seed": 7}
    calls, expand = [], module.expand

    def counted(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return expand(*arguments)

    monkeypatch.setattr(module, "expand", counted)
    with pytest.raises(KeyboardInterrupt):
        CircuitEval(feature=TARGET, **how).run(levels)
    CircuitEval(feature=TARGET, **how).run(levels)
    assert len(calls) == len(set(calls)) + 1  # the killed one alone is made again
    before = len(calls)
    CircuitEval(feature=TARGET, **how, batch_tokens=7).run(levels)
    assert len(calls) == before


@pytest.mark.slow
def test_batches_decide_nothing(levels):
    how = {"contexts": 5, "exact": 8, "random": 0, "children": 1, "seed": 3}
    whole = circuit(levels[1:], TARGET, Search(batch_tokens=4096, **how), Bootstrap())
    for file in whole.records[1].folder.glob(f"below-*/{TARGET}.json"):
        file.unlink()
    parts = circuit(levels[1:], TARGET, Search(batch_tokens=1, **how), Bootstrap())
    edges = [one.nodes[1, str(TARGET)].expansion.edges for one in (whole, parts)]
    for a, b in zip(*edges, strict=True):
        assert a.effect == pytest.approx(b.effect, abs=1e-5)


def test_identity_links_are_contracted(levels, result):
    found = CircuitEval(feature=TARGET, identity="contract", **HOW).run(levels).details
    assert found["nodes"][0]["same"] == [f"resid.1/{MIDDLE}"]
    assert f"resid.1/{MIDDLE}" not in {node["node_id"] for node in found["nodes"]}
    moved = {(link["source"], link["target"]): link["weight"] for link in found["links"]}
    before = links(result)[f"resid.0/{UPSTREAM}", f"resid.1/{MIDDLE}"]
    assert moved[f"resid.0/{UPSTREAM}", ROOT] == before["weight"]
    assert set(moved.values()) < {link["weight"] for link in result.details["links"]}


def test_a_latent_that_drives_two_stays_when_it_is_contracted():
    def link(source, target, identity):
        return {"source": source, "target": target, "identity": identity}

    nodes = [{"node_id": name} for name in "tabc"]
    graph = {"nodes": nodes, "links": [link("a", "t", True), link("b", "t", False),
                                       link("c", "a", True), link("c", "b", False)]}  # fmt: skip
    found = contracted(graph)
    assert [(node["node_id"], node["same"]) for node in found["nodes"]] == [
        ("t", ["a"]), ("b", []), ("c", []),
    ]  # fmt: skip
    assert [(one["source"], one["target"]) for one in found["links"]] == [
        ("b", "t"), ("c", "t"), ("c", "b"),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_logit_difference_is_a_root(levels):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(65, 91, (6, CTX), generator=generator)
    tokens[:, -1] = 66  # a token that has u
    prompts = tuple(Prompt((256, *row.tolist()), right=70, wrong=80) for row in tokens)
    how = Search(contexts=5, exact=5, random=0, children=1, min_share=0.0)
    found = circuit(levels[1:], Task("toy", prompts), how, Bootstrap())
    root = found.nodes[2, "toy"]
    assert root.expansion.contexts == 6
    lm, top = levels[2].lm, levels[2]
    for edge in root.expansion.edges[:5]:
        changes = []
        for prompt in prompts:
            row = torch.tensor([prompt.tokens])

            def off(x, latent=edge.latent):
                f = top.sae.encode(x)[..., latent, None]
                f[:, 0] = 0
                return x - f * top.sae.W_dec[latent]

            logits = [lm.logits(row, edit)[0, -1] for edit in ({}, {top.point: off})]
            difference = [float(one[70] - one[80]) for one in logits]
            changes.append(difference[0] - difference[1])
        assert edge.effect == pytest.approx(sum(changes) / 6, abs=1e-5)
        assert edge.cosine is None
    assert {level for level, _ in found.nodes} == {2, 1, 0}


@pytest.mark.slow
def test_a_file_of_prompts_is_a_root(levels, tmp_path):
    lm, lines, letters = levels[2].lm, [], "abcdefghijklmnopqrstuvwxyz"
    ids = [one_token(lm.tokenizer, letter) for letter in letters]
    for i in range(10):  # the last five are the first ones with prompt and counterfactual swapped
        clean, patch = (f"{start}{letters[i % 5]}qb" for start in ("xy" if i < 5 else "yx"))
        logits = lm.logits(torch.tensor([ids_of(lm.tokenizer, clean)]))[0, -1, ids]
        answers = {
            "clean_answer": letters[logits.argmax()],
            "patch_answer": letters[logits.argmin()],
        }
        lines.append(json.dumps({"clean_prefix": clean, "patch_prefix": patch, **answers}))
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(lines))
    asked = {**HOW, "contexts": 7, "min_share": 0.0, "task": str(file)}
    found = CircuitEval(**asked).run(levels)
    assert found.details["root"] == "logits/own"
    assert found.tokens["contexts"] == 7  # more than half of the file: none is held out
    assert {
        point for point, _, _ in (n["node_id"].partition("/") for n in found.details["nodes"])
    } == {"logits", "resid.0", "resid.1", "resid.2"}
    write_circuit(found, tmp_path / "pages")
    assert "logits/own" in (tmp_path / "pages" / "index.html").read_text()
    with pytest.raises(ConfigError, match="are two roots. Give one of them"):
        CircuitEval(**asked, feature=TARGET).run(levels)
    file.write_text("\n".join(lines[:4]))
    with pytest.raises(ConfigError, match="own has 4 prompts; 5 or more are needed"):
        CircuitEval(**asked).run(levels)


def test_the_files_can_be_read_again(result, levels, tmp_path):
    write_circuit(result, tmp_path)
    nodes, edges = result.details["nodes"], result.details["links"]
    for one in levels:
        found = read_features(tmp_path / f"features-{one.point}.json", one)
        those = {node["name"] for node in nodes if node["layer"] == one.point.layer}
        assert {str(latent) for latent in found.latents} == those
        assert list(found.weights) == sorted(found.weights, reverse=True)
    space = "{http://graphml.graphdrawing.org/xmlns}"
    graph = ElementTree.parse(tmp_path / "circuit.graphml").getroot().find(f"{space}graph")
    read = {
        (edge.get("source"), edge.get("target")): float(
            edge.find(f"{space}data[@key='edge_weight']").text
        )
        for edge in graph.iter(f"{space}edge")
    }
    assert read == {(one["source"], one["target"]): one["weight"] for one in edges}
    assert {one.get("id") for one in graph.iter(f"{space}node")} == {n["node_id"] for n in nodes}
    page = (tmp_path / "index.html").read_text()
    assert f"Circuit of {ROOT}" in page
    assert "<a href" not in page
    content = json.loads(json.dumps(result.to_json()))
    assert content["details"]["links"] == edges


def test_networkx_reads_the_graph(result, tmp_path):
    networkx = pytest.importorskip("networkx")
    write_circuit(result, tmp_path)
    graph = networkx.read_graphml(tmp_path / "circuit.graphml")
    assert graph.number_of_edges() == len(result.details["links"])
    assert graph.edges[f"resid.1/{MIDDLE}", ROOT]["identity"] is True


def test_latents_lead_to_their_dashboards(levels, tmp_path):
    folder = tmp_path / "a run"
    (folder / "evals" / "dashboard").mkdir(parents=True)
    (folder / "evals" / "dashboard" / "index.html").write_text("")
    top = PlacedSAE(levels[2].sae, levels[2].source, "top", folder)
    result = CircuitEval(feature=TARGET, **HOW).run([*levels[:2], top])
    write_circuit(result, tmp_path / "circuit")
    page = (tmp_path / "circuit" / "index.html").read_text()
    assert f'href="../a%20run/evals/dashboard/index.html#/latent/{TARGET}"' in page
    assert f"#/latent/{UPSTREAM}" not in page


def test_what_cannot_be_a_circuit_is_refused(levels, tiny_source, random_corpus):
    low, middle, top = levels
    sources = {
        "other LM": place(tiny_source("llama"), random_corpus(), 1, sae_at),
        "mlp_out": place(low.source.source, random_corpus(), 1, sae_at, site="mlp_out"),
    }
    signed = SAE(
        low.sae.W_enc, low.sae.b_enc, low.sae.W_dec, low.sae.b_dec,
        SAEConfig("pca", "identity", 32, 24),
    )  # fmt: skip
    for others, said in (
        ([sources["other LM"]], "different LMs"),
        ([PlacedSAE(middle.sae, top.source, "twin")], r"both at resid\.2"),
        ([sources["mlp_out"]], r"mlp_out\.1.*site=resid"),
        ([PlacedSAE(signed, low.source, "pca")], "activation identity"),
        ([], "at least 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            CircuitEval(feature=TARGET).run([*others, top])
    with pytest.raises(ConfigError, match="one SAE was given"):
        circuit([top], TARGET, Search(), Bootstrap())


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        (None, "feature is not given"),
        (24, "0 to 23"),
        ("-3", "-3"),
        ("³", "no latent ³"),
        (2, "is silent"),
    ],
)
def test_wrong_latents_are_refused(levels, feature, said):
    low, _, highest = levels
    top = PlacedSAE(copy.deepcopy(highest.sae), highest.source, highest.name)
    top.sae.b_enc[2] = -1e6
    with pytest.raises(ConfigError, match=said):
        CircuitEval(feature=feature).run([low, top])


def test_too_few_contexts_are_refused(levels):
    low, _, top = levels
    with pytest.raises(ConfigError, match="5 are needed"):
        CircuitEval(feature=TARGET, num_tokens=CTX).run([low, top])
