"""Before training: does a reward rank right answers above wrong ones, or does it track length?"""
