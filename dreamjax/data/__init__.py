"""From images to batches: photo folders, captions, identifiers, prior sets, data set builders.

What a batch holds is a function of (seed, step) alone, so that a run can be resumed or repeated exactly. The room
stands on `dreamjax.theta`, `dreamjax.convert` and what is below them.
"""
