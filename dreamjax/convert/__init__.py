"""Conversion of published checkpoints to and from dreamjax, with one declarative mapping table per model.

A parameter without a row in the table, on either side, is an error that lists it. The package depends on
`dreamjax.models`.
"""
