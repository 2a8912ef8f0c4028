"""Language models: loading them and their tokenizers, scoring and sampling with shared prefixes, the
teacher and its cache of scores, the value head, and divergences between two models."""

from utils.models import four_bits

four_bits.leave_out()
