"""Changes to libraries: one file for each library, with the reason and the condition for its removal."""
