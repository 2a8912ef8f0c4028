"""What a completion is rewarded with: the specification, task and intrinsic rewards, normalisers, their
combination, components of the user's own, and the unit cases that test a specification on real records."""
