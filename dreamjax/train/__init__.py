"""Training: one pure step, one loop around it. Methods differ in their data, their trainable subtree and their loss.

`state.py` holds what changes, `step.py` changes it, `optimizer.py` says how, `loop.py` repeats that, `sharding.py` says
on which devices, `checkpoints.py` and `logs.py` keep what came of it.
"""
