"""How a model refuses, and what undoes it: openers, directions, subspaces, edits, their verdicts.

Fits and checks them on training prompts; knows no attack and searches no prompts.
"""
