"""One trial, in plain torch: phases, groups, epochs, checkpoints. No Ray below this border."""
