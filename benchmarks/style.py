"""Colours and markers of the libraries that benchmarks compare; width of pictures."""

from sae.reports.style import GREY, TONES

COLOURS: dict[str, str] = dict(
    zip(("ours", "sae-lens", "dictionary_learning", "sparsify"), TONES, strict=False)
)
COLOURS |= dict.fromkeys(("authors", "by hand", "limit"), GREY)
MARKERS = {
    "ours": "o",
    "sae-lens": "s",
    "dictionary_learning": "^",
    "sparsify": "D",
    "authors": "x",
}
WIDTH = 8.0
"""Inches."""
