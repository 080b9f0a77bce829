"""What a training run records of itself, and the page that shows it (`stackelberg report DIR`)."""
