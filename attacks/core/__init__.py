"""Machinery that attacks share; it knows no attack."""
