"""Speed of this project beside other libraries and beside what the hardware allows.

Not part of the installed package: run from the repository, `python -m benchmarks.speed`
(docs/results/speed.md). Every number is a ratio to something that was measured in the same run.
"""
