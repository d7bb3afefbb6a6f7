"""Records and judgements on disk: append-only streams of JSON lines.

Imports no torch; every other package reads and writes results through it.
"""
