"""Rewards room: what a completion is paid."""
