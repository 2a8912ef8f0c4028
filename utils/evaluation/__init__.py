"""A policy's answers and what is measured on them, one evaluation at a time (10_evaluate.py)."""
