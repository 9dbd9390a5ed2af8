"""Published checkpoints to and from dreamjax: one declarative mapping table per model, used for import and for export.

A key that no row of the table matches, on either side, is an error that lists it. The room stands on `dreamjax.models`.
"""
