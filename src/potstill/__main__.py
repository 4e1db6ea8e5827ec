"""``python -m potstill``: what ``torchrun -m potstill`` starts."""

from potstill.cli import main

if __name__ == "__main__":
    main()
