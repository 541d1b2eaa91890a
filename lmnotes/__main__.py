"`python -m lmnotes`, as torchrun starts it"
import sys
from lmnotes.app.cli import main

if __name__ == '__main__': sys.exit(main())
