"""How good a personalisation is: metrics, published protocols, tables and contact sheets.

The room stands on `dreamjax.data` and what is below it.
"""
