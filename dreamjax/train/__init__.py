"""Training: one pure step, one loop around it. Methods differ in their data, their trainable subtree and their loss.

`state.py` is the state, `step.py` updates it, `optimizer.py` builds the optimizer, `loop.py` repeats the update,
`many.py` trains many thetas at once, `checkpoints.py`, `early_stopping.py` and `logs.py` keep the results.
"""
