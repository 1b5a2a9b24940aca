"""Saved SAEs: our own file format.

A folder with `config.json` (words, sizes, metadata, checksum) and `sae.safetensors` (`W_enc`,
`b_enc`, `W_dec`, `b_dec`).
"""

from sae.artifacts.native import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE, load, save_sae

__all__ = ["CONFIG_FILE", "FORMAT_VERSION", "WEIGHTS_FILE", "load", "save_sae"]
