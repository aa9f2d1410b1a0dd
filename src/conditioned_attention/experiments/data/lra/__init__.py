"""The data of the Long Range Arena, made here or read from its release."""
