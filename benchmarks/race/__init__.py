"""A race against nanoGCG: same weights, prompts and numbers, two processes, one clock."""
