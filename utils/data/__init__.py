"""From raw files to the records of train, val and test: one reader per form of data set, checks, splits,
prompts, and the download of what is public."""
