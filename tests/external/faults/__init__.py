"""What happens to a program when machines and people fail it: see docs/reliability.md."""
