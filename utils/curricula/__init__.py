"""Which prompts a rollout is made of: in random order, paced by difficulty, by a bandit, or by pass rate.
Defined in docs/curricula.md."""
