"""FinQA programs, answer extraction and answer equality."""
