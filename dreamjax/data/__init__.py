"""Images to batches: photo folders, captions, identifiers, prior sets, TFDS builders.

The content of a batch is a pure function of (seed, step), so that a run can be resumed or repeated exactly. The package
depends on `dreamjax.theta`, `dreamjax.convert` and what they depend on.
"""
