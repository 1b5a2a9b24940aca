"""LMs on the hub: what is asked of it, and one clear line where it cannot be had."""

import pytest
from _sources import hub, source_of

__all__ = ["hub"]  # fixtures


def test_the_revision_goes_through_and_no_code_is_run(hub):
    source = source_of(kind="hub", repo="a/b", revision="step3000")
    assert source.load().identity["revision"] == "step3000"
    assert len(hub.calls) == 5  # configuration and tokenizer are looked for on the disk first
    assert [options["use_safetensors"] for _, options in hub.calls if "dtype" in options] == [True]
    for repo, options in hub.calls:
        assert repo == "a/b"
        assert options["revision"] == "step3000"
        assert options["trust_remote_code"] is False


def test_what_was_downloaded_once_needs_no_hub(hub):
    hub.cached, hub.reachable = True, False
    assert source_of(kind="hub", repo="a/b").load().d_model == 32
    assert all(options["local_files_only"] for _, options in hub.calls)


def test_a_hub_out_of_reach_is_one_clear_line(hub):
    from sae.errors import SourceError

    hub.reachable = False
    with pytest.raises(SourceError) as caught:
        source_of(kind="hub", name="gpt2", repo="a/b").load()
    message = str(caught.value)
    assert "lm=gpt2 (a/b) is on the Hugging Face hub, which cannot be reached" in message
    assert "Name or service not known" in message
    assert "lm=smollm2-135m" in message
    assert "lm=folder lm.path" in message
    assert "\n" not in message


def test_a_repository_that_is_not_there_is_one_clear_line(hub):
    from sae.errors import SourceError

    hub.there = False
    with pytest.raises(SourceError, match="a/b at revision main did not load.*Check lm.repo") as e:
        source_of(kind="hub", repo="a/b").load()
    assert "\n" not in str(e.value)
