"""What a model computes and says on plain prompts: states, answers, probes, massive activations.

Reads only; what follows from it about refusal is in `refusals`, about layers in `analysis`.
"""
