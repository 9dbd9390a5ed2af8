"""The published methods, one module each: DreamBooth, StyleDrop, HyperDreamBooth, DreamTuner, textual inversion.

A method is wiring: which rows it trains on, which kind of theta, which loss, which generator. The room stands on the
others, all but the toybox; only the command line stands above it.
"""
