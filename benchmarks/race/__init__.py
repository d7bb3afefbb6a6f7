"""A race against nanoGCG: same weights, prompts and numbers, two processes, one clock.

It writes no records, and nothing else of the suite imports it.
"""
