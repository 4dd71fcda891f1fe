"""Time, memory and largest batch of the models, measured in processes of their own."""
