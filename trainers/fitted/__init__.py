"""Runs of models that are fitted in one go: those that find items, and those that rank."""
