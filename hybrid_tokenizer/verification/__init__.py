"""Checks of this package: parity with reference code, published file layouts, speed."""
