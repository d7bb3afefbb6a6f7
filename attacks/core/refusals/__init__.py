"""How a model refuses, and how refusal is removed: openers, directions, subspaces, edits, verdicts.

Fits and checks them on training prompts; knows no attack and searches no prompts.
"""
