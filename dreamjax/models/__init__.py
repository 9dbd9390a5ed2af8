"""The networks, as linen modules: U-Nets, autoencoders, token transformers, text and image encoders.

A module here maps arrays and parameters to arrays. It neither trains nor reads or writes files, knows neither noise
schedules nor samplers, and knows nothing of personalisation: a theta is applied from outside (`dreamjax.theta`). The
paths of its parameters are stable API, since published weights are loaded by them. The room imports no other room.
"""
