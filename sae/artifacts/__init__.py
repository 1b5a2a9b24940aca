"""Saved SAEs: our own format (`native.py`) and those of other libraries, one file each.

Our own: a folder with `config.json` (names, sizes, metadata, checksum) and `sae.safetensors`
(`W_enc`, `b_enc`, `W_dec`, `b_dec`). Every format is loaded as the same inference SAE: unit decoder
rows, nothing subtracted from the input, thresholds in the LM's own units.
"""

from sae.artifacts.formats import FORMATS, load, save
from sae.artifacts.native import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE, save_sae
from sae.artifacts.publish import push_to_hub
from sae.artifacts.saebench import to_saebench

__all__ = [
    "CONFIG_FILE",
    "FORMATS",
    "FORMAT_VERSION",
    "WEIGHTS_FILE",
    "load",
    "push_to_hub",
    "save",
    "save_sae",
    "to_saebench",
]
