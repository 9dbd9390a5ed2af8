"""The theta: the small pytree in which a personalisation ends, whatever method found it.

Here are its kinds (low-rank updates, adapter tables, soft tokens, full weights), `expand`, which turns one into a
variable collection that mirrors the module tree, the interceptor that applies that collection while the generator runs,
and saving and loading as one safetensors file. The room stands on `dreamjax.models`.
"""
