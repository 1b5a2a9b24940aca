"""Activations on disk: harvested once, checked on every read, served as shuffled batches.

rows.py        what a split of activations is (`Rows`), and its statistics
cache.py       the folder of stores: keys, locks, remedies
store.py       zarr arrays and their checksums; the only file that knows zarr
harvest.py     text x LM -> store
sources.py     what a data module reads from: activations of an LM
stream.py      the same without a cache: the LM runs whenever rows are read
folder.py      or your own; files.py opens them
superposition.py  or drawn from a synthetic world, whenever they are read
from_config.py from plain configuration to such a source
order.py       which row comes when; reading ahead in a thread
datamodule.py  the Lightning end of it
__main__.py    `python -m sae.activations list | remove`
"""
