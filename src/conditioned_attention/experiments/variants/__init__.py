"""The variants that are compared: named changes of an otherwise identical model."""
