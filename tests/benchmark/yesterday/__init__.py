"""Files that a commit before the redesign of the project wrote."""
