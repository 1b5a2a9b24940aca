"""Fixtures that all tests share. `sae` is imported inside them only, so that shapes are checked."""

import os
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker, also for programs that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

if not torch.cuda.is_available():
    # Read when Triton is first imported, which Lightning does: kernels then run on CPU tensors
    os.environ["TRITON_INTERPRET"] = "1"

_USER_CACHE = os.environ.get("SAE_CACHE")
_LONGEST = ("real/test_main_job", "chaos", "integration", "browser", "real")
"""Under tests/, what takes longest: beginnings of paths."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that no process is left alone with one at the end."""

    def place(item: pytest.Item) -> int:
        here = Path(__file__).parent
        path = item.path.relative_to(here).as_posix() if item.path.is_relative_to(here) else ""
        return next((i for i, name in enumerate(_LONGEST) if path.startswith(name)), len(_LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _no_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of a whole module must not write into the user's cache either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_CACHE", str(tmp_path_factory.mktemp("shared_cache")))
        patch.setenv("SAE_AUTO", "lm=float32 sae=float32")  # on every machine the same
        yield


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny matrices are slower with several threads, and far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if request.node.get_closest_marker("real_lm") else 1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests expect what a CPU computes, bit for bit, with LMs on the CPU, also where a GPU is.

    Those marked `gpu` are about a GPU: they see it, and place what they make themselves.
    """
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that a test starts
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(autouse=True)
def cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    """An empty cache folder for every test; those marked `real_lm` use the user's (None)."""
    if request.node.get_closest_marker("real_lm"):
        _use_user_cache(monkeypatch)
        monkeypatch.delenv("SAE_AUTO", raising=False)
        return None
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_source() -> Callable[..., Any]:
    """`tiny_source("gpt2", seed=1, …)` is the LMSource of a tiny random LM."""

    def make(family: str = "llama", **fields: object) -> Any:
        from sae.language import LMSource

        config = {"kind": "random", "name": f"tiny-{family}", "family": family}
        return LMSource.from_config(config | fields)

    return make


@pytest.fixture(scope="session")
def tiny_lm(tiny_source: Callable[..., Any]) -> Callable[[str], Any]:
    """`tiny_lm("gpt2")` is a tiny random LanguageModel (d_model 32, 3 layers), loaded once."""
    loaded: dict[str, Any] = {}

    def make(family: str = "llama") -> Any:
        if family not in loaded:
            loaded[family] = tiny_source(family).load()
        return loaded[family]

    return make


@pytest.fixture(scope="session")
def random_corpus() -> Callable[..., Any]:
    """`random_corpus(num_documents=50, …)` is a corpus of random words."""

    def make(**fields: object) -> Any:
        from sae.language import corpus_from_config

        return corpus_from_config({"kind": "random_words", "name": "random_words"} | fields)

    return make


@pytest.fixture
def toy_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, bytes]], dict[str, Any]]:
    """`toy_wheel({"toy/a.csv": b"…"})` is the config of a wheel that pip finds offline."""

    def make(members: dict[str, bytes]) -> dict[str, Any]:
        index = tmp_path / "index"
        index.mkdir(exist_ok=True)
        path = index / "toy_text-1.0-py3-none-any.whl"
        about = "toy_text-1.0.dist-info"
        files = members | {
            f"{about}/METADATA": b"Metadata-Version: 2.1\nName: toy-text\nVersion: 1.0\n",
            f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{about}/RECORD": b"",
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(index))
        return {
            "package": "toy-text",
            "version": "1.0",
            "sha256": sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
            "member": next(iter(members)),
        }

    return make


@pytest.fixture(scope="session")
def real_lm() -> Any:
    """The default LM, loaded once; only for tests marked `real_lm`."""
    import yaml

    from sae.dtypes import resolve_lm
    from sae.language import LMSource

    with pytest.MonkeyPatch.context() as patch:
        _use_user_cache(patch)
        patch.delenv("SAE_AUTO", raising=False)
        config = yaml.safe_load(_conf("lm/smollm2-135m"))
        return LMSource.from_config(resolve_lm(config, "cpu")).load()


@pytest.fixture(scope="session")
def real_corpus() -> Any:
    """The default corpus; only for tests marked `real_lm`."""
    import yaml

    from sae.language import corpus_from_config

    return corpus_from_config(yaml.safe_load(_conf("corpus/news")))


def _conf(name: str) -> str:
    return (Path(__file__).parent.parent / "conf" / f"{name}.yaml").read_text()


def _use_user_cache(patch: pytest.MonkeyPatch) -> None:
    if _USER_CACHE is None:
        patch.delenv("SAE_CACHE", raising=False)
    else:
        patch.setenv("SAE_CACHE", _USER_CACHE)
