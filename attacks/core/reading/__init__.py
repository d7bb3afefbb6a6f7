"""What plain prompts make a model compute and say: states, answers, probes, massive activations.

Reads only; what follows from it about refusal lives in `refusals`, about layers in `analysis`.
"""
