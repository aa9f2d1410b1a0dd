"""Files and folders that survive."""
