"""LMs to take from a folder or a hub; nothing here asks a network."""

from types import SimpleNamespace

import pytest


def source_of(**config):
    from sae.language import LMSource

    return LMSource.from_config({"name": "x"} | config)


@pytest.fixture
def saved(tiny_lm, tmp_path):
    """A folder with a tiny LM that save_pretrained wrote."""
    folder = tmp_path / "saved"
    lm = tiny_lm("gpt2")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Fail at once where anything asks the hub."""
    from sae.language import quiet

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.utils.get_session", refuse)
    return quiet


@pytest.fixture
def hub(monkeypatch, tiny_lm):
    """A hub with one repository; `hub.calls` are the loads, `hub.cached` what is on disk."""
    import transformers

    hub = SimpleNamespace(calls=[], cached=False, reachable=True, there=True)

    def load(give):
        def from_pretrained(repo, **options):
            hub.calls.append((repo, options))
            if options.get("local_files_only") and not hub.cached:
                raise OSError("We couldn't connect and it is not in the cache\nmore")
            if not hub.there:
                raise OSError(f"{repo} is not a valid model identifier.\nmore")
            return give()

        return from_pretrained

    def head(url, timeout):
        assert timeout <= 5
        if not hub.reachable:
            raise ConnectionError("[Errno -2] Name or service not known\nmore")

    lm = tiny_lm("gpt2")
    found = {name: set() for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", load(lambda: (lm.model, found))
    )
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", load(lambda: lm.model.config))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load(lambda: lm.tokenizer))
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    return hub
