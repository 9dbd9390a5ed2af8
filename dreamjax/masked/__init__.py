"""Masked-token generation as pure maths on arrays: mask schedules, the masked-token loss, parallel decoding, guidance.

The room knows no network: what predicts the tokens' logits is passed in as a function. It imports no other room.
"""
