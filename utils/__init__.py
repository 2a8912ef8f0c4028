"""The library behind the numbered stages; each room imports only rooms listed above it.

common, typed, config, cli, manifest, stage < data < grading < rewards < models < training < evaluation
"""
