"""`python -m models.training`: rebuild the shipped weights."""

from models.training.shipped import main

main()
