"""Data room: one record type for every data set, one reader per data set, checks, rendering, prompts."""
