"""What is compared: named changes of an otherwise identical model."""
