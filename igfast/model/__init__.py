"""What is done with the user's model: calling it, its layers, whether its rows are independent, its state."""
