"""How good a personalisation is: metrics, published protocols, tables and contact sheets.

The package depends on `dreamjax.data` and what that depends on.
"""
