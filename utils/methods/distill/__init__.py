"""Distillation of a teacher, on the student's own samples or on gold text."""
