"""Supervised fine-tuning and reinforcement learning on TRL's trainers."""
