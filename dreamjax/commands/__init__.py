"""The commands of the command line, one module each: `add` declares its arguments, and `run` runs it.

A command imports JAX and the packages that compute at their first use, so that `--help` and a mistyped flag do not wait
for them. For the same reason annotations are strings (`from __future__ import annotations`), and the choices and
defaults of arguments are written out; a test compares them with those of the packages.
"""
