"""What tools/soak.py is made of: the stages that it kills, their study, and the witness."""
