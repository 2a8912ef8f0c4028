"""What a model is made of and what it will cost, from its configuration alone; behind
inspect_model_architecture.py."""
