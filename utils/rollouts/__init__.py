"""What every method on sampled completions shares: TRL's trainers with shared prefixes, where they start,
the state of their rewards, the curriculum they follow, and the candidates that stage 04 samples."""
