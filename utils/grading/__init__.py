"""Grading room: FinQA programs, answer extraction and equality for GSM8K and MATH, and one ``grade``."""
