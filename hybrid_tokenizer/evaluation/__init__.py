"""Rows x images x measures: tables, studies and figures."""
