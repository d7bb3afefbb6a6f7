"""The harness: runs attacks against models, judges the answers, and tabulates.

Topics have folders; only the command line's entry and the paths to shipped data are here.
"""

# Answers for the old names of modules (`attacks.moved`), such as `benchmarks.store`.
import attacks as attacks
