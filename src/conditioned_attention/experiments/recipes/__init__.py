"""One file a recipe: all settings of an experiment, with their source."""
