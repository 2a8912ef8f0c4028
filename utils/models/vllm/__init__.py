"""vLLM as the sampler, driven through TRL; an extra that nothing else requires."""
