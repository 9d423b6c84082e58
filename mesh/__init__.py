"""The one shared runtime of the services. It knows no commerce word: whatever is here serves at least two services."""
