"""The program that runs a config, and launchers that start it on clusters."""
