"""Records of latents, against slow loops over dense codes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from _features import CTX, POINT, make_sae, placed_on, source
from filelock import FileLock

from sae.artifacts import save_sae
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, StoreError
from sae.evals.dashboard import DashboardEval
from sae.features import Records, firings, make, records, summary
from sae.features.__main__ import main
from sae.features.glimpse import choose, glimpse
from sae.features.summary import Place, summarise
from sae.features.weights import weight_statistics

__all__ = ["source"]  # a fixture


def dense(sae, source, split="train"):
    """Codes [contexts ctx d_sae] with NaN where no row counts, and the tokens."""
    store = source.store(split)
    stored = store.rows(POINT)
    x = torch.cat([stored.read(i) for i in range(stored.num_chunks)])
    f = sae.encode(x.float()).double()
    tokens = torch.as_tensor(store.tokens)
    counts = source.counted.mask([x], tokens[:, 1:].reshape(-1))
    f[~counts] = math.nan
    found = torch.full((len(tokens), CTX, f.shape[1]), math.nan, dtype=torch.float64)
    found[:, 1:] = f.reshape(len(tokens), CTX - 1, -1)
    return found.numpy(), tokens.numpy()


@pytest.mark.slow
def test_numbers_are_those_of_slow_loops(source):
    sae = make_sae(source)
    found = records(PlacedSAE(sae, source))
    codes, tokens = dense(sae, source)
    counted = ~np.isnan(codes[:, :, 0])
    np.testing.assert_array_equal(found.text.counted, counted)
    np.testing.assert_array_equal(found.text.tokens, tokens)
    assert 40 < len(found) < 48, "some fire, the last one never does"
    with pytest.raises(KeyError, match="47"):
        found[47]
    for record in found:
        f = codes[:, :, record.latent]
        fired = [(c, p, f[c, p]) for c in range(len(f)) for p in range(CTX) if f[c, p] > 0]
        values = sorted((v for *_, v in fired), reverse=True)
        assert record.firings == len(fired)
        assert record.density == pytest.approx(len(fired) / counted.sum())
        assert record.max == pytest.approx(values[0], rel=1e-5)
        assert record.mean == pytest.approx(sum(values) / len(values), rel=1e-5)
        assert record.contexts_fired == len({c for c, *_ in fired})
        intervals, positions = [0] * 10, [0] * CTX
        mass, at = {}, {}
        for c, p, v in fired:
            intervals[min(int(v / values[0] * 10), 9)] += 1
            positions[p] += 1
            mass[tokens[c, p]] = mass.get(tokens[c, p], 0) + v
        for token in tokens[counted].tolist():
            at[token] = at.get(token, 0) + 1
        assert np.abs(record.interval_counts - intervals).sum() <= 2, "float32 at the borders"
        assert record.positions.tolist() == positions
        assert record.histogram.sum() == len(fired)
        falling = sorted(mass, key=lambda token: (-mass[token], token))[:10]
        assert record.by_mass.ids.tolist() == falling
        np.testing.assert_allclose(
            record.by_mass.values, [mass[t] / sum(values) for t in falling], rtol=1e-5
        )
        means = {t: mass[t] / at[t] for t in mass if at[t] >= summary.MIN_OCCURRENCES}
        assert record.by_mean.ids.tolist() == sorted(means, key=lambda t: (-means[t], t))[:10]
        assert record.histogram_tokens.tolist() == falling[:5]
        n = len(values)
        smallest = [values[math.ceil(k * n / 10) - 1] for k in range(1, 11)]
        np.testing.assert_allclose(record.decile_edges, [values[0], *smallest], rtol=1e-5)


@pytest.mark.slow
def test_top_contexts_are_the_largest_without_duplicates(source):
    sae = make_sae(source)
    codes, tokens = dense(sae, source)
    for record in records(PlacedSAE(sae, source)):
        f = np.nan_to_num(codes[:, :, record.latent])
        expected, windows = [], set()
        for c in np.lexsort((np.arange(len(f)), -f.max(1))):
            peak = int(f[c].argmax())
            window = tuple(tokens[c, max(0, peak - 16) : peak + 17])
            if f[c].max() > 0 and window not in windows and len(expected) < summary.TOP:
                windows.add(window)
                expected.append((int(c), peak))
        top = [one for one in record.contexts if one.group == "top"]
        assert [(one.context, one.peak) for one in top] == expected
        for one in record.contexts:
            np.testing.assert_allclose(
                f[one.context, one.positions], one.values, rtol=1e-5, err_msg=str(one)
            )
            assert (f[one.context] > 0).sum() == len(one.positions)
            if one.group == "zero":
                assert one.peak == -1
                assert not len(one.positions)
            if one.group == "interval":
                assert one.interval == min(int(one.value / record.max * 10), 9) + 1
            if one.value > 0:
                stronger = (f > f[one.context].max()).sum()
                assert one.decile == stronger * 10 // record.firings + 1


def test_equal_windows_are_shown_once():
    tokens = np.array([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 9]])
    fired = firings.Firings(np.array([2, 6, 10]), np.array([1.0, 3.0, 2.0], np.float32))
    place = Place(tokens, 4, np.bincount(tokens.ravel()), seed=0)
    found = summarise(0, fired, place)
    shown = [(one.group, one.context) for one in found.contexts]
    assert shown[:2] == [("top", 1), ("top", 2)]
    assert ("interval", 0) in shown, "it is an example of its interval all the same"


@pytest.mark.slow
def test_co_firing_counts_rows_of_both(source):
    sae = make_sae(source)
    found = records(PlacedSAE(sae, source))
    codes, _ = dense(sae, source)
    on = np.nan_to_num(codes.reshape(-1, 48)) > 0
    both = on.T.astype(int) @ on.astype(int)
    for record in found:
        j = record.latent
        others = sorted(set(range(48)) - {j}, key=lambda i: (-both[j, i], i))[:20]
        others = [i for i in others if both[j, i]]
        assert record.co_firing.ids.tolist() == others
        assert record.co_firing.values.tolist() == both[j, others].tolist()
        either = [(on[:, j] | on[:, i]).sum() for i in others]
        np.testing.assert_allclose(record.jaccard, both[j, others] / either)


@pytest.mark.slow
def test_co_firing_is_the_same_by_blocks(source, monkeypatch):
    from sae.features import co_firing

    sae = make_sae(source)
    found = records(PlacedSAE(sae, source))
    store = firings.open_firings(found.folder, 48, found.facts["all_rows"])
    whole = co_firing.co_firing(store)
    monkeypatch.setattr(co_firing, "_BLOCK_ENTRIES", 100)
    blocks = co_firing.co_firing(store)
    for name, tensor in whole.items():
        assert torch.equal(tensor, blocks[name]), name


@pytest.mark.slow
def test_an_sae_that_never_fires_has_no_records(source):
    sae = make_sae(source)
    silent = SAE(sae.W_enc, sae.b_enc - 1e6, sae.W_dec, sae.b_dec, sae.config)
    found = records(PlacedSAE(silent, source))
    assert (len(found), list(found), found.table().rows()) == (0, [], [])
    assert glimpse(PlacedSAE(silent, source), "train")[0] == []


@pytest.mark.slow
def test_a_lost_file_is_made_again(source):
    placed = PlacedSAE(make_sae(source), source)
    folder = records(placed).folder
    expected = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name, content in expected.items():
        (folder / name).unlink()
        records(placed)
        assert (folder / name).read_bytes() == content, name


@pytest.mark.slow
def test_neighbours_of_signed_codes_count_by_size(source):
    sae = make_sae(source, "identity", d_sae=8)
    flipped = SAE(-sae.W_enc, -sae.b_enc, -sae.W_dec, sae.b_dec, sae.config)
    found = records(PlacedSAE(sae, source), against=[flipped])
    cosines = (sae.W_dec @ sae.W_dec[3]).numpy()
    cosines[3] = 0
    for name, sign in (("3", 1), ("-3", -1)):
        record = found[name]
        assert record.nearest.ids.tolist() == np.argsort(-abs(cosines), kind="stable")[:7].tolist()
        expected = sign * cosines[record.nearest.ids]
        np.testing.assert_allclose(record.nearest.values, expected, atol=1e-6)
        assert record.stability == pytest.approx(1)


@pytest.mark.slow
def test_signed_codes_have_a_record_of_each_sign(source):
    sae = make_sae(source, "identity", d_sae=8)
    found = records(PlacedSAE(sae, source))
    codes, _ = dense(sae, source)
    for record in found:
        f = record.sign * codes[:, :, record.latent]
        assert record.firings == (f > 0).sum()
        assert record.max == pytest.approx(np.nanmax(f), rel=1e-5)
    negative, positive = found["-3"], found[3]
    assert (negative.sign, negative.name, positive.name) == (-1, "-3", "3")
    assert negative.top_logits.ids.tolist() == positive.bottom_logits.ids.tolist()
    np.testing.assert_allclose(negative.top_logits.values, -positive.bottom_logits.values)


@pytest.mark.slow
def test_co_firing_of_signed_codes_tells_the_sides_apart(source):
    sae = make_sae(source, "identity", d_sae=8)
    found = records(PlacedSAE(sae, source))
    codes, _ = dense(sae, source)
    f = np.nan_to_num(codes.reshape(-1, 8))
    on = np.concatenate([f > 0, f < 0], 1)
    both = on.T.astype(int) @ on.astype(int)
    for name in ("3", "-3"):
        record = found[name]
        j = record.latent + 8 * (record.sign < 0)
        others = sorted(set(range(16)) - {j}, key=lambda i: (-both[j, i], i))
        others = [i for i in others if both[j, i]]
        sides = record.co_firing.ids + 8 * record.co_firing_negative
        assert sides.tolist() == others
        assert record.co_firing.values.tolist() == both[j, others].tolist()


@pytest.mark.slow
def test_a_killed_pass_goes_on_and_ends_with_the_same_bytes(source, monkeypatch, cache):
    monkeypatch.setattr(firings, "_PART_FIRINGS", 9_000)
    monkeypatch.setattr(firings, "_GROUP_FIRINGS", 13_000)
    placed = PlacedSAE(make_sae(source), source)
    folder = records(placed, split="train").folder
    expected = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sum(name.startswith("part") for name in expected) > 1
    assert sum(name.startswith("group") for name in expected) > 1
    monkeypatch.setattr(make, "summarise", None)  # a pass that stops in the middle
    for name in sorted(expected):
        (folder / "facts.json").unlink()
        (folder / name).unlink(missing_ok=True)
        if name.startswith("group"):
            with pytest.raises(TypeError):
                records(placed)
        with monkeypatch.context() as patch:
            patch.setattr(make, "summarise", summarise)
            records(placed)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == expected, name


@pytest.mark.slow
def test_damaged_files_are_made_again(source):
    placed = PlacedSAE(make_sae(source), source)
    folder = records(placed).folder
    expected = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name, content in expected.items():
        broken = bytearray(content)
        broken[len(broken) // 2] ^= 1
        (folder / name).write_bytes(bytes(broken))
        records(placed)
        assert (folder / name).read_bytes() == content, name


def test_a_full_disk_is_told_before_it_is_full(source, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 10))
    with pytest.raises(StoreError, match="num_tokens"):
        records(PlacedSAE(make_sae(source), source))


@pytest.mark.slow
def test_fewer_tokens_read_the_first_contexts(source):
    placed = PlacedSAE(make_sae(source), source)
    found = records(placed, num_tokens=10 * CTX + 3)
    assert found.text.tokens.shape == (10, CTX)
    assert {one.context for record in found for one in record.contexts} <= set(range(10))


@pytest.mark.slow
def test_the_text_is_named_and_its_bytes_are_kept(source):
    found = records(PlacedSAE(make_sae(source), source))
    assert (found.text.is_training, found.facts["split"]) == (True, "train")
    test = records(PlacedSAE(make_sae(source), source), split="test")
    assert not test.text.is_training
    assert test.folder != found.folder
    separator = source.source.load_tokenizer().eos_token_id
    text = b"".join(found.text.vocabulary[i] for i in found.text.tokens[0] if i != separator)
    read = "".join(source.corpus.documents())
    assert text[:CTX].decode() in read


@pytest.mark.slow
def test_stability_is_the_cosine_with_atoms_of_other_seeds(source):
    sae, others = make_sae(source), [make_sae(source, seed=1), make_sae(source, d_sae=96, seed=2)]
    found = records(PlacedSAE(sae, source), against=others)
    largest = [(sae.W_dec @ other.W_dec.T).max(1).values for other in others]
    expected = (largest[0] + largest[1]) / 2
    for record in found:
        assert record.stability == pytest.approx(expected[record.latent].item(), abs=1e-5)
    assert records(PlacedSAE(sae, source))[0].stability is None
    assert 0 < found.stability()["stability_random"] < 1


def test_random_atoms_are_as_many_as_those_compared_with(source):
    """Atoms drawn at random are no more stable than chance, however many there are of them."""
    sae, wide = make_sae(source), make_sae(source, seed=1, d_sae=4096)
    found = weight_statistics(sae, None, None, [wide])
    assert float((found["stability"] - found["stability_random"]).mean()) == pytest.approx(
        0, abs=0.03
    )


def test_what_is_no_other_seed_is_refused(source):
    placed, other = PlacedSAE(make_sae(source), source), make_sae(source, seed=1)
    with pytest.raises(ConfigError, match="has the same atoms as this one"):
        records(placed, against=[other, make_sae(source)])
    other.metadata["activations"] = {"point": "resid.0"}
    with pytest.raises(ConfigError, match=r"is at resid.0, this one at resid.1"):
        records(placed, against=[other])


@pytest.mark.slow
def test_weights_say_neighbours_and_neurons(source):
    sae = make_sae(source)
    record = records(PlacedSAE(sae, source))[3]
    cosines = (sae.W_dec @ sae.W_dec[3]).numpy()
    cosines[3] = -2
    assert record.nearest.ids.tolist() == np.argsort(-cosines)[:10].tolist()
    assert record.neurons.ids[0] == sae.W_dec[3].abs().argmax()
    assert record.encoder_cosine == pytest.approx(1, abs=1e-5)


def test_activations_without_tokens_are_refused(tmp_path):
    from sae.activations.folder import FolderActivations

    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(256, 4)).astype("f4"))
    sae = SAE(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4),
              SAEConfig("l1", "relu", 4, 4))  # fmt: skip
    with pytest.raises(ConfigError, match="tokens"):
        records(PlacedSAE(sae, FolderActivations(tmp_path)))


def test_incomplete_records_are_no_records(tmp_path):
    from sae.errors import ArtifactError

    with pytest.raises(ArtifactError):
        Records(tmp_path)


def plain(contexts):
    return [(*one[:6], one.positions.tolist(), one.values.tolist()) for one in contexts]


@pytest.mark.slow
def test_a_glimpse_shows_the_same_latents_as_the_records(source):
    placed = PlacedSAE(make_sae(source), source)
    shown, tokens = glimpse(placed, "train", num_tokens=16_384, per_bin=2)
    assert tokens == 16_384
    found = records(placed)
    assert shown
    for record in shown:
        same = found[record.latent]
        assert (record.firings, record.max) == (same.firings, same.max)
        assert plain(record.contexts) == plain(same.contexts)
        assert record.top_logits.ids.tolist() == same.top_logits.ids.tolist()
    density = [record.density for record in shown]
    assert min(density) >= 1e-4
    assert max(density) < 0.1


def test_latents_are_chosen_blindly_in_every_bin():
    density = np.geomspace(1e-5, 1, 4000)
    chosen = choose(density, per_bin=3)
    assert len(chosen) == 24
    assert chosen == choose(density.tolist(), per_bin=3)
    bins = np.floor(8 * np.log(density[chosen] / 1e-4) / np.log(1000))
    assert bins.tolist() == np.repeat(np.arange(8.0), 3).tolist()


def test_a_window_has_a_value_for_every_token_that_counts(source):
    placed = PlacedSAE(make_sae(source), source)
    record = records(placed)[0]
    for one, shown in zip(
        record.as_plain()["contexts"],
        [context for context in record.contexts if context.group == "top"],
        strict=False,
    ):
        assert len(one["pieces"]) == len(one["values"]) <= 33
        assert one["values"][one["peak"]] == pytest.approx(shown.value)
        expected = {shown.peak - one["peak"] + i: v for i, v in enumerate(one["values"]) if v}
        assert set(expected) <= set(shown.positions.tolist())
        if shown.peak < 16:
            assert one["values"][0] is None, "position 0 does not count"


@pytest.mark.parametrize("name", ["²", "-1", "48", "1.5", ""])
def test_a_latent_that_is_none_is_told(source, name):
    found = records(PlacedSAE(make_sae(source), source))
    with pytest.raises(KeyError, match="There is no latent"):
        found[name]


def test_a_notebook_shows_a_record_and_escapes_its_text(source):
    found = records(PlacedSAE(make_sae(source), source))
    vocabulary = [b"<script>alert(1)</script>"] * len(found.text.vocabulary)
    hostile = replace(found[0], text=replace(found.text, vocabulary=vocabulary))
    shown = hostile._repr_html_()
    assert shown is not None
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") > 20


@pytest.mark.slow
def test_the_evaluation_compares_with_seeds_of_the_same_width(source, tmp_path):
    sae = make_sae(source)
    save_sae(tmp_path / "seed1", make_sae(source, seed=1))
    narrow = SAE(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4),
                 SAEConfig("l1", "relu", 4, 4))  # fmt: skip
    save_sae(tmp_path / "narrow", narrow)
    result = DashboardEval(against=(str(tmp_path / "seed1"),)).run(PlacedSAE(sae, source))
    stability = result.metrics["stability"].value
    assert stability is not None
    assert 0 < stability < 1
    assert len(result.tables["latents"]) == result.metrics["live"].value
    with pytest.raises(ConfigError, match="width 4"):
        DashboardEval(against=(str(tmp_path / "narrow"),)).run(PlacedSAE(sae, source))


@pytest.mark.slow
def test_records_in_the_cache_are_listed_and_removed(source, capsys):
    made = records(placed_on(source, make_sae(source)))
    key = made.folder.name
    (made.folder.parent / "halfway").mkdir()
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert key in listed
    assert "complete" in listed
    assert "incomplete" in listed
    assert main(["remove", key]) == 0
    assert made.folder.exists()  # without --yes it only says what
    with FileLock(f"{made.folder}.lock"):
        assert main(["remove", key, "--yes"]) == 1
    assert main(["remove", "nothing", "--yes"]) == 1
    assert key in capsys.readouterr().err
    assert main(["remove", key, "--yes"]) == 0
    assert not made.folder.exists()
    assert main(["remove", "--all", "--yes"]) == 0
    assert list(made.folder.parent.glob("halfway")) == []
    assert main(["remove"]) == 1
