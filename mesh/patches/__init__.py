"""What we change in libraries: one file a library, each with its reason and the condition for its removal."""
