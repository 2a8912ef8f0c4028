"""SLURM: what a job asks for (cluster), submitting and following jobs (jobs), how far a run is (progress)."""
