"""Training networks from random parameters: those that come with dreamjax, or your own on your images.

Each module derives a `task.Task` from a config and `data.examples.Examples`; `dreamjax pretrain` trains and saves it.
"""
