"""Language models and texts, and how activations are read and replaced.

`LMSource` names an LM and loads it as a `LanguageModel`, whose `capture` and `logits` reach the
sites of `sites.py`. `corpus_from_config` names a text and `build_contexts` cuts it into tokens.
"""

import os

# Before huggingface_hub is imported: no telemetry, and no background thread that asks the hub to
# convert old weights. The last one silences a warning when a data loader forks after tokenising.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import sae.language.hub_lm  # noqa: E402  these modules make their kinds known
import sae.language.textfiles
import sae.language.wheel_lm  # noqa: F401
from sae.language.corpora import corpus_from_config  # noqa: E402
from sae.language.corpus import CORPORA, Corpus  # noqa: E402
from sae.language.given_lm import GivenLM  # noqa: E402
from sae.language.lm import LanguageModel  # noqa: E402
from sae.language.sites import FAMILIES, Family  # noqa: E402
from sae.language.sources import LMS, LMSource  # noqa: E402
from sae.language.text import Contexts, build_contexts, separator_id  # noqa: E402

__all__ = [
    "CORPORA",
    "FAMILIES",
    "LMS",
    "Contexts",
    "Corpus",
    "Family",
    "GivenLM",
    "LMSource",
    "LanguageModel",
    "build_contexts",
    "corpus_from_config",
    "separator_id",
]
