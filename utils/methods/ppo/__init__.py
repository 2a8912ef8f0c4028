"""Token-level proximal policy optimisation with a critic."""
