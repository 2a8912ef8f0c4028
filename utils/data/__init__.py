"""Records, one reader per data set, checks and prompts."""
