"""Quality of trained dictionaries beside other libraries: same vectors, each by its own trainer.

    python -m benchmarks.quality plan      how many trainings, how long
    python -m benchmarks.quality run       train what no record holds yet
    python -m benchmarks.quality report    tables and pictures, from the records alone

The protocol is in docs/results/quality.md. Not part of the installed package.
"""
