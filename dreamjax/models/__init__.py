"""The networks, as linen modules: U-Nets, autoencoders, token transformers, text and image encoders.

A module here maps arrays and parameters to arrays. It contains no training, no file access, no noise schedule and no
sampler. It does not depend on personalisation either: thetas are applied from outside (`dreamjax.theta`). The paths of
its parameters are stable API, since published weights are loaded by them. The package imports no other of dreamjax.
"""
