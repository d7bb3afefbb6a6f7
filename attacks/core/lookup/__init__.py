"""Classes by name: shipped ones and plugins, what they declare, and specs like `gcg:steps=100`.

Imports no torch; loads a class only when it is asked for.
"""
