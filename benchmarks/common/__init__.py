"""Small general helpers: lines, files, progress, threads, versions, areas under curves.

Imports nothing else of the suite.
"""
