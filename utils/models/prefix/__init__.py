"""Each distinct prompt is encoded once and shared by its completions: for sampling, for scoring and for
the gradient."""
