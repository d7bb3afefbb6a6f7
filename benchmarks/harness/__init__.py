"""Running a matrix: plan, fits, cells, engines, checkpoints, clocks.

Knows no attack and no judge by name; what it finds goes to `storage`, and boards never import it.
"""
