"""Masked-token generation as pure maths on arrays: mask schedules, the masked-token loss, parallel decoding.

The package contains no network: decoding takes the prediction as a function. It imports no other package of dreamjax.
"""
