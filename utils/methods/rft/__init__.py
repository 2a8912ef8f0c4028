"""Rejection-sampling fine-tuning: supervised, on the right ones of a policy's own samples."""
