"""Task rewards, intrinsic reward, normalisers and the reward specification."""
