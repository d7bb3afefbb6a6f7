"""What a run is made of: behaviour sets, models and suites, by name or from files.

Loads and checks them; runs nothing.
"""
