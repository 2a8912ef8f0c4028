"""What is shown to people: text tables, figures in one style, and documents that render to Markdown and to
HTML. Nothing here knows what a policy, a stage or a run is."""
