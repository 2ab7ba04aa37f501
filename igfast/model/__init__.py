"""Calls the user's model, taps its layers, finds out whether its rows are independent, and restores its state."""
