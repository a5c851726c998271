"""The two commands of the README, and the programs around a run."""
