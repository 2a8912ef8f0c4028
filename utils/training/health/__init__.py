"""Rules over a training's log: what is healthy, what is not, and what to try."""
