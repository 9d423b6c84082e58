"""Run the edge."""

from gateway.program import main

if __name__ == "__main__":
    main()
