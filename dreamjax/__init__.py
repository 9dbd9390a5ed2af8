"""Personalised image generation in JAX: DreamBooth, StyleDrop, HyperDreamBooth and DreamTuner."""

__version__ = "0.1.0"
