"""One file a topic of a comparison: its columns, text and figures."""
