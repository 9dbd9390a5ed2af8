"""Training networks from nothing: those that come with dreamjax, or your own on your images.

Each module turns a config and `data.examples.Examples` into a `Task`; `dreamjax pretrain` fits and saves it.
"""
