"""The one training loop and the one pure step, with state, optimisers, sharding, checkpoints and logs.

Gradients run over the theta only; the generator's weights are frozen arguments of the jitted step. Methods differ in
their data, their trainable subtree and their loss, never in the loop. The room stands on `dreamjax.data` and what is
below it.
"""
