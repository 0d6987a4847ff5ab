"""`python -m deskpro COMMAND`, and `torchrun -m -- deskpro COMMAND`."""

from deskpro.pipeline.cli import main

if __name__ == "__main__":
    main()
