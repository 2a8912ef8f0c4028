"""What a completion is rewarded with: the specification, task and intrinsic rewards, normalisers, their
combination, user-defined components, and the unit cases that test a specification on real records."""
