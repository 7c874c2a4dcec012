"""Other packages, used when they are installed and never needed."""
