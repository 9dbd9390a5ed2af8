"""The published methods, one module each: DreamBooth, StyleDrop, HyperDreamBooth, DreamTuner, textual inversion.

A method is wiring: which examples it trains on, which kind of theta, which loss, which generator. The package imports
all others but the toybox; only the command line imports it.
"""
